// Package durable writes files that a crash leaves either whole or not there.
package durable

import (
	"errors"
	"os"
	"path/filepath"
)

// TmpPrefix begins the names of files that are being written. What a crash left
// of them is for the directory's owner to remove.
const TmpPrefix = "tmp-"

// Write makes or replaces the file at path, readable by its owner only, with
// what fn writes. When it returns nil the file is on stable storage under its
// name; when fn returns an error nothing has changed. The error is fn's, or one
// of the file system.
func Write(path string, fn func(*os.File) error) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), TmpPrefix)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			// Both may be done already, and say so.
			_, _ = f.Close(), os.Remove(f.Name())
		}
	}()
	if err := fn(f); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return SyncDir(filepath.Dir(path))
}

// SyncDir puts the names in a directory on stable storage.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
