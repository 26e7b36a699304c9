package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"time"

	"golang.org/x/net/netutil"
)

// Bounds of what clients may ask for.
const (
	maxBody        = 4 << 10 // bytes of a request's body
	maxHeader      = 8 << 10
	maxConnections = 16 // the next waits
	readTimeout    = 5 * time.Second
	writeTimeout   = 10 * time.Second
	idleTimeout    = 30 * time.Second
	closeTimeout   = time.Second
)

// Server answers requests at one listener.
type Server struct {
	http *http.Server
	end  context.CancelFunc // ends answers that would go on
	path string
	done chan struct{}
	err  error // of Serve, when done is closed
}

// Serve has h answer those who connect to l, which it then owns, until Close: a
// Handler as a rule, or something as quick.
func Serve(l net.Listener, h http.Handler, log *slog.Logger) *Server {
	ctx, end := context.WithCancel(context.Background())
	v := &Server{end: end, path: l.Addr().String(), done: make(chan struct{}), http: &http.Server{
		Handler:           h,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ReadHeaderTimeout: readTimeout,
		ReadTimeout:       readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}}
	go func() {
		defer close(v.done)
		v.err = v.http.Serve(netutil.LimitListener(l, maxConnections))
	}()
	return v
}

// Path is where it listens: that of the socket.
func (v *Server) Path() string { return v.path }

// Close removes the socket and ends all connections; answers under way have a
// second. The handler is not called after it. Closing twice is harmless.
func (v *Server) Close() error {
	v.end()
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	err := v.http.Shutdown(ctx)
	if errors.Is(err, context.DeadlineExceeded) {
		err = v.http.Close()
	}
	if <-v.done; !errors.Is(v.err, http.ErrServerClosed) {
		err = errors.Join(err, v.err)
	}
	return err
}

// Handler is the interface of s, without a socket. metrics may be nil.
func Handler(s Source, metrics http.Handler) http.Handler {
	h := handler{s, make(chan struct{}, maxCaptures)}
	mux := http.NewServeMux()
	route := func(method, path string, f http.HandlerFunc) {
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			if r.Method != method && (r.Method != http.MethodHead || method != http.MethodGet) {
				w.Header().Set("Allow", method)
				refuse(w, http.StatusMethodNotAllowed, "%s does not take %s, but %s", r.URL.Path, r.Method, method)
				return
			}
			r.Body = http.MaxBytesReader(w, r.Body, maxBody)
			f(w, r)
		})
	}
	route(http.MethodGet, "/v1/monitor", h.monitor)
	route(http.MethodGet, "/v1/guests", h.guests)
	route(http.MethodGet, "/v1/guests/{name}", h.guest)
	route(http.MethodPut, "/v1/guests/{name}/tickets", h.tickets)
	route(http.MethodGet, "/v1/segments", h.segments)
	route(http.MethodGet, "/v1/segments/{name}/capture", h.capture)
	if metrics != nil {
		route(http.MethodGet, "/metrics", metrics.ServeHTTP)
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		refuse(w, http.StatusNotFound, "nothing is at %s; this is version %d", r.URL.Path, Version)
	})
	return mux
}

type handler struct {
	Source
	captures chan struct{} // has one for each that is under way
}

func (h handler) monitor(w http.ResponseWriter, _ *http.Request) { answer(w, h.Monitor()) }

func (h handler) guests(w http.ResponseWriter, _ *http.Request) {
	answer(w, Snapshot{Monitor: h.Monitor(), Guests: h.Guests()})
}

func (h handler) guest(w http.ResponseWriter, r *http.Request) { h.one(w, r.PathValue("name")) }

func (h handler) one(w http.ResponseWriter, name string) {
	all := h.Guests()
	for i := range all {
		if all[i].Name == name {
			answer(w, all[i])
			return
		}
	}
	h.absent(w, name, all)
}

func (h handler) absent(w http.ResponseWriter, name string, all []Guest) {
	names := make([]string, len(all))
	for i := range all {
		names[i] = all[i].Name
	}
	refuse(w, http.StatusNotFound, "%s", NoGuest(name, names))
}

// NoGuest says that no guest is called name, and which there are.
func NoGuest(name string, names []string) string {
	if len(names) == 0 {
		return fmt.Sprintf("no guest is called %q; there are none", name)
	}
	return fmt.Sprintf("no guest is called %q; there are %s", name, strings.Join(names, ", "))
}

func (h handler) tickets(w http.ResponseWriter, r *http.Request) {
	var asked struct {
		Tickets *int64 `json:"tickets"`
	}
	d := json.NewDecoder(r.Body)
	d.DisallowUnknownFields()
	err := d.Decode(&asked)
	if err == nil {
		switch _, err = d.Token(); {
		case err == io.EOF:
			err = nil
		case err == nil:
			err = errors.New("there is more after the object")
		}
	}
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large):
		refuse(w, http.StatusRequestEntityTooLarge, "a body of more than %d bytes", maxBody)
		return
	case err != nil:
		refuse(w, http.StatusBadRequest, `the body is not {"tickets": N}: %v`, err)
		return
	case asked.Tickets == nil:
		refuse(w, http.StatusBadRequest, `the body is not {"tickets": N}`)
		return
	}
	name := r.PathValue("name")
	switch err := h.SetTickets(name, *asked.Tickets); {
	case err == nil:
		h.one(w, name)
	case errors.Is(err, ErrNoGuest):
		h.absent(w, name, h.Guests())
	case errors.Is(err, ErrRefused):
		refuse(w, http.StatusUnprocessableEntity, "%v", err)
	default:
		refuse(w, http.StatusInternalServerError, "%v", err)
	}
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	// That the client is gone is its own affair.
	_ = json.NewEncoder(w).Encode(v)
}

func refuse(w http.ResponseWriter, status int, format string, args ...any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(failure{fmt.Sprintf(format, args...)})
}

type failure struct {
	Error string `json:"error"`
}
