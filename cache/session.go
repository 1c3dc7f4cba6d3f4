package cache

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// The session file says which boot of the machine wrote here last. As long as
// that boot goes on, the page cache holds whatever a killed process had
// written. Once it is over without a clean end, files may be shorter than they
// were, or full of zeros.

const clean = "clean"

// bootID is the kernel's random name of this boot.
func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "unknown" // never equal to an earlier session's: everything is verified
	}
	return strings.TrimSpace(string(b))
}

// begin notes that this boot writes here from now on, and sets everything
// aside if an earlier one did not end well.
func (c *Cache) begin() error {
	last, err := os.ReadFile(c.path("session"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	boot := bootID()
	if s := strings.TrimSpace(string(last)); s != clean && (s != boot || boot == "unknown") {
		if err := c.setAside(); err != nil {
			return err
		}
	}
	return c.writeSession(boot)
}

// end waits until everything is on disk, and says so there.
func (c *Cache) end() error {
	if err := unix.Syncfs(int(c.root.Fd())); err != nil {
		return fmt.Errorf("sync the cache: %w", err)
	}
	return c.writeSession(clean)
}

// setAside moves every object to suspect/.
func (c *Cache) setAside() error {
	objects, err := os.ReadDir(c.Dir())
	if err != nil {
		return err
	}
	for _, o := range objects {
		if err := os.Rename(c.path("objects", o.Name()), c.path("suspect", o.Name())); err != nil {
			return err
		}
	}
	return nil
}

// writeSession writes the session file and waits until it is on disk: it is what
// tells the next boot whether anything else is. It is written in place and
// always of one length, so that it can be on a full disk too; should it be torn,
// it says neither that all is well nor this boot's name.
func (c *Cache) writeSession(s string) error {
	f, err := os.OpenFile(c.path("session"), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(f, "%-40s\n", s)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close(), c.root.Sync())
}
