package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// pair is one round: what we need, and what the reference needs.
type pair struct{ value, reference float64 }

// median is the round in the middle, by its ratio, whose two figures met the
// same noise.
func median(rounds []pair) pair {
	rounds = slices.Clone(rounds)
	slices.SortFunc(rounds, func(a, b pair) int {
		// a/ar < b/br, without dividing by what may be nothing.
		switch d := a.value*b.reference - b.value*a.reference; {
		case d < 0:
			return -1
		case d > 0:
			return 1
		}
		return 0
	})
	return rounds[(len(rounds)-1)/2]
}

// measurement is one run of what is measured.
type measurement func(ctx context.Context) (float64, error)

// inTurn measures two things in turn, so that both meet the same noise; which
// of them comes first changes from round to round.
func inTurn(ctx context.Context, rounds int, value, reference measurement) (pair, error) {
	var all []pair
	for i := range rounds {
		var p pair
		into := []*float64{&p.value, &p.reference}
		order := []measurement{value, reference}
		if i%2 == 1 {
			slices.Reverse(into)
			slices.Reverse(order)
		}
		for k, measure := range order {
			var err error
			if *into[k], err = measure(ctx); err != nil {
				return p, err
			}
		}
		all = append(all, p)
	}
	return median(all), nil
}

// again measures two things in turn once both were done: whatever that leaves in
// memory is there.
func (b *bench) again(ctx context.Context, value, reference measurement) (pair, error) {
	for _, m := range []measurement{value, reference} {
		if _, err := m(ctx); err != nil {
			return pair{}, err
		}
	}
	return inTurn(ctx, b.sizes.rounds, value, reference)
}

// The caches of the kernel, as /proc/sys/vm/drop_caches numbers them.
const (
	dropNames = "2" // dentries and inodes
	dropAll   = "3" // and pages
)

// dropCaches empties them, of the whole machine.
func dropCaches(what string) error {
	unix.Sync() // what is dirty stays
	return os.WriteFile("/proc/sys/vm/drop_caches", []byte(what), 0)
}

// cold is a measurement that begins with empty caches.
func cold(m measurement) measurement {
	return func(ctx context.Context) (float64, error) {
		if err := dropCaches(dropAll); err != nil {
			return 0, err
		}
		return m(ctx)
	}
}

// milliseconds is a duration for figures.
func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1e3 }

// readFiles opens, reads and closes files, by the system's calls alone, and
// tells how many bytes they had.
func readFiles(ctx context.Context, paths []string, buf []byte) (total int64, err error) {
	for _, path := range paths {
		if err := ctx.Err(); err != nil {
			return total, err
		}
		n, err := readFile(path, buf)
		if err != nil {
			return total, fmt.Errorf("reading %s: %w", path, err)
		}
		total += n
	}
	return total, nil
}

func readFile(path string, buf []byte) (total int64, err error) {
	fd, err := retried(func() (int, error) { return unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0) })
	if err != nil {
		return 0, err
	}
	for {
		n, err := retried(func() (int, error) { return unix.Read(fd, buf) })
		if n <= 0 || err != nil {
			return total, errors.Join(err, unix.Close(fd))
		}
		total += int64(n)
	}
}

// retried makes a system call again that a signal of our own runtime ended.
func retried(call func() (int, error)) (n int, err error) {
	for {
		if n, err = call(); !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}

// checksums are of contents that ought to be the same.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// fileChecksum reads a file for its checksum.
func fileChecksum(path string) (uint32, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return checksum(f)
}

func checksum(r io.Reader) (uint32, error) {
	h := crc32.New(castagnoli)
	_, err := io.CopyBuffer(h, struct{ io.Reader }{r}, make([]byte, mib))
	return h.Sum32(), err
}

// fio is a job of fio(1) over some files, and what it says.
type fio struct {
	bench *bench
	rw    string // read or randread
	block int64  // bytes
	bytes int64  // to be read in all
}

// run reads the files, and gives the speed in bytes a second.
func (f fio) run(ctx context.Context, paths []string) (float64, error) {
	for _, p := range paths {
		if strings.Contains(p, ":") {
			return 0, fmt.Errorf("fio takes the name %s for several", p)
		}
	}
	out, err := f.bench.node.Output(ctx, f.bench.node.Command(ctx, "fio",
		"--name=job", "--readonly", "--ioengine=psync", "--invalidate=0", "--output-format=json", "--file_service_type=sequential",
		"--filename="+strings.Join(paths, ":"), "--rw="+f.rw, fmt.Sprintf("--bs=%d", f.block), fmt.Sprintf("--io_size=%d", f.bytes),
	))
	if err != nil {
		return 0, err
	}
	var said struct {
		Jobs []struct {
			Error int `json:"error"`
			Read  struct {
				Bytes int64   `json:"io_bytes"`
				Speed float64 `json:"bw_bytes"`
			} `json:"read"`
		} `json:"jobs"`
	}
	if err := json.Unmarshal([]byte(out), &said); err != nil {
		return 0, fmt.Errorf("what fio says is no JSON: %w: %s", err, out)
	}
	if len(said.Jobs) != 1 || said.Jobs[0].Error != 0 || said.Jobs[0].Read.Speed <= 0 || said.Jobs[0].Read.Bytes < f.bytes/2 {
		return 0, fmt.Errorf("fio did not read %d bytes: %s", f.bytes, out)
	}
	return said.Jobs[0].Read.Speed, nil
}
