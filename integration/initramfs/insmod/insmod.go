// Package insmod loads kernel modules from inside an initramfs that package
// initramfs has made. It resolves nothing: the order was settled when the archive
// was written. Loading needs CAP_SYS_MODULE.
package insmod

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Order is the name of the file, beside the modules, that lists them one a line
// in the order in which they load.
const Order = "order"

// Load loads one plain .ko file with no parameters. That it is loaded already is
// no error.
func Load(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return fmt.Errorf("kernel module: %w", err)
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("kernel module %s: %w", file, err)
	}
	return nil
}

// LoadAll loads every module that the list in dir names. One that fails does not
// stop the others: what they serve may be missing on this machine. The errors are
// joined.
func LoadAll(dir string) error {
	list, err := os.ReadFile(filepath.Join(dir, Order))
	if err != nil {
		return fmt.Errorf("kernel modules: %w", err)
	}
	var errs []error
	for _, name := range strings.Fields(string(list)) {
		errs = append(errs, Load(filepath.Join(dir, name)))
	}
	return errors.Join(errs...)
}
