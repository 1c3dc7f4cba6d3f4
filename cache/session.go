package cache

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
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
	last, err := os.ReadFile(c.session())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	boot := bootID()
	if s := string(last); s != "" && s != clean && (s != boot || boot == "unknown") {
		if err := c.setAside(); err != nil {
			return err
		}
	}
	suspects, err := os.ReadDir(filepath.Join(c.dir, "suspect"))
	if err != nil {
		return err
	}
	c.suspects = len(suspects) > 0
	return c.writeSession(boot)
}

func (c *Cache) end() error {
	d, err := os.Open(c.dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := unix.Syncfs(int(d.Fd())); err != nil {
		return err
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
		from, to := filepath.Join(c.Dir(), o.Name()), filepath.Join(c.dir, "suspect", o.Name())
		if err := os.Rename(from, to); err != nil {
			return err
		}
	}
	return nil
}

func (c *Cache) session() string { return filepath.Join(c.dir, "session") }

// writeSession replaces the session file and waits until it is on disk: it is
// what tells the next boot whether anything else is.
func (c *Cache) writeSession(s string) error {
	tmp := filepath.Join(c.dir, "tmp", "session")
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(s)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(tmp, c.session())
	}
	if err != nil {
		return err
	}
	d, err := os.Open(c.dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
