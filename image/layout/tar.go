package layout

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"github.com/containerd/containerd/v2/core/content"

	"github.com/ipfs-stargz/ipfs-stargz/image/oci"
)

// maxTarEntries bounds what is remembered of an archive.
const maxTarEntries = 100_000

// archive is a layout in a tar file.
type archive struct {
	f       *os.File
	entries map[string]extent
}

// extent is where the contents of an entry are in the tar file, in bytes.
type extent struct{ offset, size int64 }

// openTar finds the entries of the archive at path. It reads the headers only.
func openTar(path string) (files, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	entries, err := scanTar(f)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return &archive{f, entries}, nil
}

func scanTar(f *os.File) (map[string]extent, error) {
	magic := make([]byte, 4)
	if _, err := f.ReadAt(magic, 0); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if bytes.HasPrefix(magic, []byte{0x1f, 0x8b}) || bytes.Equal(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}) {
		return nil, fmt.Errorf("the archive is compressed; decompress it first (gunzip, zstd -d): %w", ErrNotLayout)
	}
	entries := make(map[string]extent)
	// The reader seeks over contents and never reads ahead of a header, so
	// after Next the file stands where the contents begin.
	for tr := tar.NewReader(f); ; {
		hdr, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return entries, nil
		}
		if err != nil {
			return nil, fmt.Errorf("not a tar archive (%w): %w", err, ErrNotLayout)
		}
		if hdr.Typeflag != tar.TypeReg {
			continue
		}
		for key := range hdr.PAXRecords {
			if strings.HasPrefix(key, "GNU.sparse.") {
				return nil, fmt.Errorf("entry %.200q is sparse: %w", hdr.Name, ErrNotLayout)
			}
		}
		if len(entries) == maxTarEntries {
			return nil, fmt.Errorf("the archive has more than %d files: %w", maxTarEntries, oci.ErrLimit)
		}
		offset, err := f.Seek(0, io.SeekCurrent)
		if err != nil {
			return nil, err
		}
		entries[path.Clean(hdr.Name)] = extent{offset, hdr.Size}
	}
}

func (a *archive) Close() error { return a.f.Close() }

func (a *archive) open(name string) (content.ReaderAt, error) {
	e, ok := a.entries[name]
	if !ok {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return section{io.NewSectionReader(a.f, e.offset, e.size)}, nil
}

// section is a blob inside the archive, which stays open until the layout is
// closed.
type section struct{ *io.SectionReader }

func (section) Close() error { return nil }
