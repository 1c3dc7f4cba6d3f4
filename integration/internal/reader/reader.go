// Package reader reads the files of a tree at random, in one of several habits,
// and holds every byte against an original. It is to be run as a process of its
// own: what goes wrong while it reads mapped memory, or hangs in the kernel, is
// then no trouble of whoever started it.
package reader

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Argument is the first argument of a program that is to be a reader.
const Argument = "reader"

// Plan is what a reader does.
type Plan struct {
	Got, Want string // roots of the tree that is tried, and of the original
	Habit     Habit
	Seed      uint64 // what it draws follows from it
	Least     int    // comparisons that it makes at least, even if told to stop
}

// Report is what a reader found.
type Report struct {
	Comparisons int
	Bytes       int64
	// Failure is what was read wrong, or could not be read, and how to have it
	// drawn again; "" if all was right. It is the end of the reading.
	Failure string
}

// Habit is how a reader goes about it.
type Habit string

const (
	// Jumping opens a file, reads a few ranges of it and closes it.
	Jumping Habit = "jumping"
	// Holding has several files open for long, and reads here and there.
	Holding Habit = "holding"
	// Small reads small files whole, each of a few over and over.
	Small Habit = "small files"
	// Straight reads files from the beginning to the end.
	Straight Habit = "straight on"
	// Mapping reads ranges of files that it maps.
	Mapping Habit = "mapping"
)

// Habits are all of them.
var Habits = []Habit{Jumping, Holding, Small, Straight, Mapping}

const (
	smallFile    = 32 << 10 // bytes that a small file has at most
	smallTaken   = 24       // files that are read over and over
	longestRange = 256 << 10
	straightStep = 64 << 10
	heldFiles    = 12
	// pause is between files. Who only reads what the kernel has would leave
	// little of a small machine to those who read what it has not.
	pause = 5 * time.Millisecond
)

// Run reads until stop is closed, and what the plan wants at least was done, or
// something is wrong.
func Run(stop <-chan struct{}, p Plan) Report {
	r := &reader{Plan: p, random: rand.New(rand.NewPCG(p.Seed, 0)), stop: stop}
	err := r.list()
	if err == nil {
		err = r.read()
	}
	if err != nil {
		r.report.Failure = fmt.Sprintf("%s, seed %d, comparison %d: %v", p.Habit, p.Seed, r.report.Comparisons, err)
	}
	return r.report
}

type reader struct {
	Plan
	random *rand.Rand
	stop   <-chan struct{}
	report Report
	names  []string // of regular files that are not empty, relative to the roots

	got, want []byte // buffers
}

// list finds the files there are, in the original.
func (r *reader) list() error {
	err := filepath.WalkDir(r.Want, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		name, err := filepath.Rel(r.Want, path)
		if info.Size() > 0 && (r.Habit != Small || info.Size() <= smallFile) {
			r.names = append(r.names, name)
		}
		return err
	})
	if err == nil && len(r.names) == 0 {
		err = errors.New("there is no file to read")
	}
	return err
}

// done tells whether it is time to stop.
func (r *reader) done() bool {
	select {
	case <-r.stop:
		return r.report.Comparisons >= r.Least
	default:
		return false
	}
}

func (r *reader) read() error {
	switch r.Habit {
	case Jumping:
		return r.each(r.jump)
	case Straight:
		return r.each(r.straight)
	case Mapping:
		return r.each(r.mapped)
	case Small:
		r.random.Shuffle(len(r.names), func(i, j int) { r.names[i], r.names[j] = r.names[j], r.names[i] })
		r.names = r.names[:min(len(r.names), smallTaken)]
		return r.each(r.straight)
	case Holding:
		return r.hold()
	}
	return fmt.Errorf("there is no habit %q", r.Habit)
}

// each opens one file after the other.
func (r *reader) each(use func(*pair) error) error {
	for !r.done() {
		p, err := r.open()
		if err != nil {
			return err
		}
		if err := errors.Join(use(p), p.close(r.random.IntN(2) == 0)); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		time.Sleep(pause)
	}
	return nil
}

// hold has files open, of which it closes one now and then for another.
func (r *reader) hold() (err error) {
	var held []*pair
	defer func() {
		for _, p := range held {
			err = errors.Join(err, p.close(false))
		}
	}()
	for !r.done() {
		if len(held) == heldFiles && r.random.IntN(50) == 0 {
			i := r.random.IntN(len(held))
			p := held[i]
			held = append(held[:i], held[i+1:]...)
			if err := p.close(true); err != nil {
				return fmt.Errorf("%s: %w", p.name, err)
			}
		}
		if len(held) < heldFiles {
			p, err := r.open()
			if err != nil {
				return err
			}
			held = append(held, p)
		}
		p := held[r.random.IntN(len(held))]
		if err := r.jumpOnce(p); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		if r.random.IntN(4) == 0 {
			p.forget()
		}
		time.Sleep(pause)
	}
	return nil
}

func (r *reader) jump(p *pair) error {
	for range 1 + r.random.IntN(4) {
		if err := r.jumpOnce(p); err != nil {
			return err
		}
	}
	return nil
}

// jumpOnce reads a range, which may go beyond the end.
func (r *reader) jumpOnce(p *pair) error {
	return r.compare(p, r.random.Int64N(p.size), r.length())
}

// length draws how much to read at once: as often a few bytes as many.
func (r *reader) length() int {
	most := longestRange >> (2 * r.random.IntN(8))
	return 1 + r.random.IntN(most)
}

func (r *reader) straight(p *pair) error {
	for off := int64(0); off < p.size; off += straightStep {
		if err := r.compare(p, off, straightStep); err != nil {
			return err
		}
	}
	return nil
}

// compare reads n bytes of both files.
func (r *reader) compare(p *pair, off int64, n int) error {
	got, err := readAt(p.got, &r.got, off, n)
	if err != nil {
		return fmt.Errorf("%d bytes at %d: %w", n, off, err)
	}
	return r.same(p, got, off, n)
}

// same holds what was read of n bytes against the original.
func (r *reader) same(p *pair, got []byte, off int64, n int) error {
	want, err := readAt(p.want, &r.want, off, n)
	if err != nil {
		return fmt.Errorf("the original: %w", err)
	}
	r.report.Comparisons++
	r.report.Bytes += int64(len(got))
	if bytes.Equal(got, want) {
		return nil
	}
	if len(got) != len(want) {
		return fmt.Errorf("%d bytes at %d: there are %d, want %d", n, off, len(got), len(want))
	}
	i := 0
	for got[i] == want[i] {
		i++
	}
	return fmt.Errorf("%d bytes at %d: that at %d is %#02x, want %#02x", n, off, off+int64(i), got[i], want[i])
}

// readAt reads n bytes, or what there is of them, into a buffer.
func readAt(f *os.File, buf *[]byte, off int64, n int) ([]byte, error) {
	if len(*buf) < n {
		*buf = make([]byte, n)
	}
	n, err := f.ReadAt((*buf)[:n], off)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return (*buf)[:n], err
}

// pair is a file that is open twice: as it is tried, and the original.
type pair struct {
	name      string
	size      int64
	got, want *os.File
}

// open draws a file.
func (r *reader) open() (_ *pair, err error) {
	p := &pair{name: r.names[r.random.IntN(len(r.names))]}
	if p.got, err = os.Open(filepath.Join(r.Got, p.name)); err != nil {
		return nil, err
	}
	if p.want, err = os.Open(filepath.Join(r.Want, p.name)); err != nil {
		return nil, errors.Join(err, p.got.Close())
	}
	got, err := p.got.Stat()
	if err == nil {
		var want fs.FileInfo
		if want, err = p.want.Stat(); err == nil {
			p.size = want.Size()
			if got.Size() != p.size {
				err = fmt.Errorf("%s has %d bytes, want %d", p.name, got.Size(), p.size)
			}
		}
	}
	if err != nil {
		return nil, errors.Join(err, p.close(false))
	}
	return p, nil
}

// forget has the kernel forget what it read of the file, so that who reads it
// next asks whoever serves it again.
func (p *pair) forget() { _ = unix.Fadvise(int(p.got.Fd()), 0, 0, unix.FADV_DONTNEED) }

func (p *pair) close(forget bool) error {
	if forget {
		p.forget()
	}
	return errors.Join(p.got.Close(), p.want.Close())
}
