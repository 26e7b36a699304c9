package initramfs

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/xi2/xz"

	"disco/integration/initramfs/insmod"
)

// compressed maps the suffixes that distributions give their modules to what
// unpacks them.
var compressed = map[string]func(io.Reader) (io.ReadCloser, error){
	".gz": func(r io.Reader) (io.ReadCloser, error) { return gzip.NewReader(r) },
	".xz": func(r io.Reader) (io.ReadCloser, error) {
		x, err := xz.NewReader(r, xz.DefaultDictMax)
		return io.NopCloser(x), err
	},
	".zst": func(r io.Reader) (io.ReadCloser, error) {
		z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1))
		if err != nil {
			return nil, err
		}
		return z.IOReadCloser(), nil
	},
}

// moduleName returns the name that the kernel knows a module file by, or false
// for a file that is no module.
func moduleName(file string) (string, bool) {
	name := path.Base(filepath.ToSlash(file))
	if ext := path.Ext(name); compressed[ext] != nil {
		name = strings.TrimSuffix(name, ext)
	}
	name, ok := strings.CutSuffix(name, ".ko")
	return strings.ReplaceAll(name, "-", "_"), ok
}

// Module is a kernel module, unpacked.
type Module struct {
	File  string // where it was found
	name  string // as the kernel has it
	image []byte
}

// Tree is a folder of modules, as /lib/modules/6.1.0-13-amd64.
type Tree struct {
	root    string
	files   map[string]string // module name to file
	builtin map[string]bool
}

// ReadTree finds the modules under root.
func ReadTree(root string) (*Tree, error) {
	t := &Tree{root: root, files: make(map[string]string), builtin: make(map[string]bool)}
	err := filepath.WalkDir(root, func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if name, ok := moduleName(file); ok && d.Type().IsRegular() {
			t.files[name] = file
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("kernel modules: %w", err)
	}
	f, err := os.Open(filepath.Join(root, "modules.builtin"))
	if errors.Is(err, fs.ErrNotExist) {
		return t, nil
	}
	if err != nil {
		return nil, fmt.Errorf("kernel modules: %w", err)
	}
	defer f.Close()
	s := bufio.NewScanner(f)
	for s.Scan() {
		if name, ok := moduleName(s.Text()); ok {
			t.builtin[name] = true
		}
	}
	if err := s.Err(); err != nil {
		return nil, fmt.Errorf("kernel modules: %s: %w", f.Name(), err)
	}
	return t, nil
}

// Resolve returns the named modules and all that they need, in an order in which
// they load: by `depends` and by `softdep … pre` of each module. Files whose names
// end in .gz, .xz or .zst are unpacked. Dashes and underscores in names are the
// same. A name that modules.builtin lists needs no file and gives none; a soft
// dependency that is nowhere is left out, as modprobe does; any other module that
// is nowhere is an error.
func (t *Tree) Resolve(names ...string) ([]Module, error) {
	r := resolution{Tree: t, done: make(map[string]bool)}
	for _, name := range names {
		if err := r.visit(name, nil); err != nil {
			return nil, err
		}
	}
	return r.order, nil
}

// resolution is one walk over a Tree.
type resolution struct {
	*Tree
	done  map[string]bool
	order []Module
}

// visit appends the module and what it needs; chain is the way that led here.
func (r *resolution) visit(name string, chain []string) error {
	name = strings.ReplaceAll(name, "-", "_")
	if r.done[name] || r.builtin[name] {
		return nil
	}
	for _, above := range chain {
		if above == name {
			return nil // soft dependencies may be circular
		}
	}
	file, ok := r.files[name]
	if !ok {
		if len(chain) > 0 {
			return fmt.Errorf("kernel module %s, which %s needs, is not under %s", name, chain[len(chain)-1], r.root)
		}
		return fmt.Errorf("kernel module %s is not under %s", name, r.root)
	}
	image, err := readModule(file)
	if err != nil {
		return err
	}
	hard, soft, err := dependencies(image)
	if err != nil {
		return fmt.Errorf("kernel module %s: %w", file, err)
	}
	chain = append(chain, name)
	for _, s := range soft {
		if _, ok := r.files[strings.ReplaceAll(s, "-", "_")]; !ok {
			continue
		}
		if err := r.visit(s, chain); err != nil {
			return err
		}
	}
	for _, h := range hard {
		if err := r.visit(h, chain); err != nil {
			return err
		}
	}
	r.done[name] = true
	r.order = append(r.order, Module{file, name, image})
	return nil
}

// dependencies reads the .modinfo section of a module: strings key=value, each
// ended by a zero byte (Linux, include/linux/module.h, MODULE_INFO).
func dependencies(image []byte) (hard, soft []string, err error) {
	f, err := elf.NewFile(bytes.NewReader(image))
	if err != nil {
		return nil, nil, err
	}
	section := f.Section(".modinfo")
	if section == nil {
		return nil, nil, errors.New("no .modinfo section: not a kernel module")
	}
	info, err := section.Data()
	if err != nil {
		return nil, nil, err
	}
	for _, entry := range bytes.Split(info, []byte{0}) {
		key, value, _ := strings.Cut(string(entry), "=")
		switch key {
		case "depends":
			for _, d := range strings.Split(value, ",") {
				if d != "" {
					hard = append(hard, d)
				}
			}
		case "softdep":
			pre := false
			for _, word := range strings.Fields(value) {
				switch word {
				case "pre:":
					pre = true
				case "post:":
					pre = false
				default:
					if pre {
						soft = append(soft, word)
					}
				}
			}
		}
	}
	return hard, soft, nil
}

// readModule returns the ELF image of a module file.
func readModule(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("kernel module: %w", err)
	}
	defer f.Close()
	unpack := compressed[filepath.Ext(file)]
	if unpack == nil {
		image, err := io.ReadAll(f)
		if err != nil {
			return nil, fmt.Errorf("kernel module: %w", err)
		}
		return image, nil
	}
	r, err := unpack(f)
	if err != nil {
		return nil, fmt.Errorf("kernel module %s: %w", file, err)
	}
	defer r.Close()
	image, err := io.ReadAll(r)
	if err != nil {
		return nil, fmt.Errorf("kernel module %s: %w", file, err)
	}
	return image, nil
}

// Modules adds modules to the folder dir of the archive, and beside them the list
// that insmod.LoadAll follows: files in the order given.
func (w *Writer) Modules(dir string, modules []Module) error {
	var order strings.Builder
	for _, m := range modules {
		if err := w.File(path.Join(dir, m.name+".ko"), 0o644, bytes.NewReader(m.image), int64(len(m.image))); err != nil {
			return err
		}
		order.WriteString(m.name + ".ko\n")
	}
	return w.File(path.Join(dir, insmod.Order), 0o644, strings.NewReader(order.String()), int64(order.Len()))
}
