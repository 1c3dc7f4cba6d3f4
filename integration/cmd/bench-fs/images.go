package main

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"time"

	"github.com/ipfs-stargz/ipfs-stargz/integration/internal/image"
)

// recipeVersion is in the names of all recipes: the store of images does not
// know when they change.
const recipeVersion = 1

// recipe is an image of layers that are written one by one.
func recipe(name string, layers ...image.Layer) image.Recipe {
	return image.Recipe{
		Name:   fmt.Sprintf("bench-%s-v%d", name, recipeVersion),
		Layers: func(context.Context, string, string) ([]image.Layer, error) { return layers, nil },
	}
}

// contents are bytes that compress to about half of their size, or to nothing less
// than it, alike in no two contents with different seeds.
type contents struct {
	seed  uint64
	size  int64
	noise bool // they do not compress
}

const (
	contentsBlock = 64 << 10
	contentsGroup = 512 // half of it noise, half of it not
)

func (c contents) reader() io.Reader { return &contentsReader{contents: c} }

type contentsReader struct {
	contents
	offset int64
	rest   []byte // of the block before offset
}

func (r *contentsReader) Read(p []byte) (int, error) {
	if len(r.rest) == 0 {
		left := r.size - r.offset
		if left == 0 {
			return 0, io.EOF
		}
		r.rest = r.block(r.offset / contentsBlock)
		r.rest = r.rest[:min(left, contentsBlock)]
		r.offset += int64(len(r.rest))
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

func (c contents) block(i int64) []byte {
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], c.seed)
	binary.LittleEndian.PutUint64(key[8:], uint64(i))
	noise := rand.NewChaCha8(key)
	b := bytes.Repeat([]byte("eStargz."), contentsBlock/8)
	if c.noise {
		// It never fails, says its documentation.
		_, _ = noise.Read(b)
		return b
	}
	for at := 0; at < len(b); at += contentsGroup {
		_, _ = noise.Read(b[at : at+contentsGroup/2])
	}
	return b
}

// writer writes the entries of a layer, of one time.
type writer struct {
	*tar.Writer
	time time.Time
}

func (w writer) dir(name string) error {
	return w.WriteHeader(&tar.Header{Name: name + "/", Typeflag: tar.TypeDir, Mode: 0o755, ModTime: w.time, Format: tar.FormatPAX})
}

func (w writer) file(name string, c contents) error {
	h := &tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, ModTime: w.time, Size: c.size, Format: tar.FormatPAX}
	if err := w.WriteHeader(h); err != nil {
		return err
	}
	_, err := io.Copy(w, c.reader())
	return err
}

// layer is one whose entries all have the time that is so many hours after
// another one's.
func layer(hours int, write func(w writer) error) image.Layer {
	return func(ctx context.Context, t *tar.Writer) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		return write(writer{t, time.Date(2024, time.February, 29, hours, 0, 0, 0, time.UTC)})
	}
}

// bigFiles is an image of large files, each in a layer of its own: first those that
// do not compress.
func bigFiles(noise, others int, size int64) image.Recipe {
	var layers []image.Layer
	for i := range noise + others {
		layers = append(layers, layer(i, func(w writer) error { return w.file(bigName(i), bigContents(i, size, i < noise)) }))
	}
	return recipe(fmt.Sprintf("big-%d-%d-%d", noise, others, size), layers...)
}

func bigName(i int) string { return fmt.Sprintf("big%d", i) }

func bigContents(i int, size int64, noise bool) contents {
	return contents{seed: 1<<32 + uint64(i), size: size, noise: noise}
}

// smallPerDir is how many small files are in a directory.
const smallPerDir = 100

func smallName(i int) string { return fmt.Sprintf("small/d%d/f%d", i/smallPerDir, i) }

func smallContents(i int) contents {
	return contents{seed: 2<<32 + uint64(i), size: 4*kib + int64(i)*2053%(12*kib)}
}

// smallFiles is an image of one layer of files of 4 to 16 KiB.
func smallFiles(n int) image.Recipe {
	return recipe(fmt.Sprintf("small-%d", n), layer(0, func(w writer) error {
		if err := w.dir("small"); err != nil {
			return err
		}
		for i := range n {
			if i%smallPerDir == 0 {
				if err := w.dir(fmt.Sprintf("small/d%d", i/smallPerDir)); err != nil {
					return err
				}
			}
			if err := w.file(smallName(i), smallContents(i)); err != nil {
				return err
			}
		}
		return nil
	}))
}

const (
	namesLayers = 10
	namesPerDir = 99 // files, beside the directory itself: as many contents there are
)

// manyNames is an image of so many entries in ten layers, each with directories
// of its own. Two with different numbers have no layer in common.
func manyNames(number, entries int) image.Recipe {
	dirs := entries / namesLayers / (namesPerDir + 1)
	var layers []image.Layer
	for l := range namesLayers {
		layers = append(layers, layer(number, func(w writer) error {
			for _, dir := range []string{"usr", "usr/lib", fmt.Sprintf("usr/lib/part%d", l)} {
				if err := w.dir(dir); err != nil {
					return err
				}
			}
			for d := range dirs {
				dir := fmt.Sprintf("usr/lib/part%d/package-%d-%d", l, number, d)
				if err := w.dir(dir); err != nil {
					return err
				}
				for f := range namesPerDir {
					c := contents{seed: 3<<32 + uint64(f), size: int64(100 + f)}
					if err := w.file(fmt.Sprintf("%s/module_%d.py", dir, f), c); err != nil {
						return err
					}
				}
			}
			return nil
		}))
	}
	return recipe(fmt.Sprintf("names-%d-%d", number, entries), layers...)
}

const (
	stackDirs  = 100
	stackFiles = 20 // in each
)

func stackName(dir, file int) string { return fmt.Sprintf("d%d/f%d", dir, file) }

func stackContents(dir, file int) contents {
	return contents{seed: 4<<32 + uint64(dir*stackFiles+file), size: 1000}
}

// stack is an image with always the same files, spread over so many layers.
func stack(n int) image.Recipe {
	var layers []image.Layer
	for l := range n {
		layers = append(layers, layer(0, func(w writer) error {
			for d := l; d < stackDirs; d += n {
				if err := w.dir(fmt.Sprintf("d%d", d)); err != nil {
					return err
				}
				for f := range stackFiles {
					if err := w.file(stackName(d, f), stackContents(d, f)); err != nil {
						return err
					}
				}
			}
			return nil
		}))
	}
	return recipe(fmt.Sprintf("stack-%d", n), layers...)
}

// twinName is a file's name, in one of two images that have the same ones.
func twinName(twin, i int) string { return fmt.Sprintf("twin%d/f%d", twin, i) }

func twinContents(i, big int) contents {
	c := contents{seed: 5<<32 + uint64(i), size: 16 * kib}
	if i < big {
		c.size = 6 * mib
	}
	return c
}

// twin is one of two images that have the same contents, big ones and tiny
// ones, and nothing else in common.
func twin(number, big, tiny int) image.Recipe {
	return recipe(fmt.Sprintf("twin-%d-%d-%d", number, big, tiny), layer(number, func(w writer) error {
		if err := w.dir(fmt.Sprintf("twin%d", number)); err != nil {
			return err
		}
		for i := range big + tiny {
			if err := w.file(twinName(number, i), twinContents(i, big)); err != nil {
				return err
			}
		}
		return nil
	}))
}
