package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"os"
	"strings"
	"time"
)

// successor makes the next image of this one, entry by entry.
type successor struct {
	name  string
	first *tar.Header                             // goes before all others
	entry func(h *tar.Header, data []byte) []byte // changes an entry, and returns its contents
}

func successors() []successor {
	return []successor{
		{name: "upgraded", entry: upgrade},
		{name: "file first", first: &tar.Header{Name: "added", Mode: 0o644, Size: int64(len(addedText)), Typeflag: tar.TypeReg}},
		{name: "other times", entry: func(h *tar.Header, data []byte) []byte {
			h.ModTime = h.ModTime.Add(24 * time.Hour)
			return data
		}},
	}
}

const addedText = "a file that the image before this one does not have\n"

// upgrade does what a patch release of Python does to a layer: all of its files
// have other times, one in twenty of its modules has another text, and what is
// compiled has other addresses all over. dpkg's list of what is installed says
// another version.
func upgrade(h *tar.Header, data []byte) []byte {
	name := strings.TrimPrefix(h.Name, "./")
	if name == "var/lib/dpkg/status" {
		return bytes.ReplaceAll(data, []byte("\nPackage: python3"), []byte("\nX-Upgraded: yes\nPackage: python3"))
	}
	const library, program = "usr/lib/python3.", "usr/bin/python3."
	if !strings.HasPrefix(name, library) && !strings.HasPrefix(name, program) || h.Typeflag != tar.TypeReg {
		return data
	}
	h.ModTime = h.ModTime.Add(24 * time.Hour)
	sum := fnv.New32a()
	fmt.Fprint(sum, name)
	switch {
	case bytes.HasPrefix(data, []byte("\x7fELF")):
		for i := 512; i < len(data); i += 2048 {
			data[i] ^= 0x55
		}
	case sum.Sum32()%20 == 0:
		return append(data, addedText...)
	}
	return data
}

// rewrite writes the layer at path as the successor has it, as plain tar. One
// without a name is the image itself.
func (s successor) rewrite(w io.Writer, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		return err
	}
	in, out := tar.NewReader(z), tar.NewWriter(w)
	if s.first != nil {
		if err := out.WriteHeader(s.first); err != nil {
			return err
		}
		if _, err := io.WriteString(out, addedText); err != nil {
			return err
		}
	}
	for {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			return out.Close()
		}
		if err != nil {
			return err
		}
		data, err := io.ReadAll(in)
		if err != nil {
			return err
		}
		if s.entry != nil {
			data = s.entry(h, data)
			h.Size = int64(len(data))
		}
		if err := out.WriteHeader(h); err != nil {
			return err
		}
		if _, err := out.Write(data); err != nil {
			return err
		}
	}
}
