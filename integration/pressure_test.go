package integration

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ipfs-stargz/ipfs-stargz/cache"
	"github.com/ipfs-stargz/ipfs-stargz/cache/disktest"
	lazyfs "github.com/ipfs-stargz/ipfs-stargz/fs"
	"github.com/ipfs-stargz/ipfs-stargz/integration/internal/reader"
	"github.com/ipfs-stargz/ipfs-stargz/integration/internal/testbed"
	"github.com/ipfs-stargz/ipfs-stargz/integration/internal/treediff"
)

// This file reads an image while its daemon has too little of everything, and
// holds every byte against the original.

const (
	// pressureSeed is what all draws of these tests follow from.
	pressureSeed = 20
	// pressureReads are comparisons that each reader makes at least.
	pressureReads = 60
	// readPatience is for how long one read may take on a busy machine.
	readPatience = time.Minute

	// pressureDisk has room for all that will be kept, blocks and contents, but
	// not beside pressureBallast.
	pressureDisk    = 88 << 20
	pressureBallast = 56 << 20
)

// pressed is one way in which a daemon has too little.
type pressed struct {
	name   string
	modes  []string
	conf   testbed.DaemonConfig
	budget int64 // of the cache; 0: none
	disk   bool  // its root is on a disk that gets full

	// press has the readers go on until what the case is about has come about.
	press func(p *pair, readers *readers)
}

// TestPressure reads at random while the cache evicts, has next to no room, or
// has a full disk.
func TestPressure(t *testing.T) {
	evicting := pressed{
		name: "evicting", modes: modes, budget: pressureContents / 3, press: untilEvicted,
		conf: testbed.DaemonConfig{Background: true, Prefetch: `quiet = "0s"`},
	}
	alone := evicting
	alone.name, alone.conf.Env, alone.modes = "evicting on one processor", []string{"GOMAXPROCS=1"}, []string{"fuse"}
	cases := []pressed{
		evicting, alone,
		{name: "far too small", modes: modes, budget: pressureLargest / 3, press: untilRefused},
		{name: "full disk", modes: modes, disk: true, press: untilFullAndEmpty, conf: testbed.DaemonConfig{IPFS: "keep_free_percent = 0"}},
	}
	var confs []testbed.DaemonConfig
	for _, c := range cases {
		c.conf.Extra = fmt.Sprintf("[cache]\nscrub = \"2s\"\nbudget = \"%d\"\n", c.budget)
		if c.disk {
			c.conf.Extra += "keep_free_percent = 0\n"
		}
		for _, mode := range c.modes {
			c.conf.Mode = mode
			confs = append(confs, c.conf)
		}
	}
	pairs := preparePairs(t, testbed.Options{}, confs...)
	im := newPressureImage(t)
	o := original{cid: pairs[0].push(im), tree: scanImage(t, pairs[0].a, "overlayfs", im.Name)}
	dir, unmount, err := pairs[0].a.MountImage(t.Context(), "overlayfs", im.Name)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unmount(); err != nil {
			t.Error(err)
		}
	}()
	o.dir = dir
	for _, c := range cases {
		var own []*pair
		own, pairs = pairs[:len(c.modes)], pairs[len(c.modes):]
		t.Run(c.name, func(t *testing.T) {
			for _, p := range own {
				t.Run(p.conf.Mode, func(t *testing.T) {
					t.Parallel()
					c.run(p.in(t), o)
				})
			}
		})
	}
}

// original is what is to be read.
type original struct {
	cid  string
	dir  string // where containerd's own unpack of it is
	tree treediff.Tree
}

func (c pressed) run(p *pair, o original) {
	t := p.t
	if c.disk {
		mountRoot(t, p.b)
	}
	t.Cleanup(func() {
		if err := p.b.Close(); err != nil {
			t.Error(err)
		}
	})
	p.start()
	p.must(p.b.Pull(t.Context(), o.cid))
	if logged(t, p.b, "cannot be lazy") {
		t.Error("not all of it is lazy")
	}
	begin := time.Now()
	c.read(p, o)
	t.Logf("under pressure for %v", time.Since(begin).Round(100*time.Millisecond))
	compareTrees(t, o.tree, scanImage(t, p.b, lazy, o.cid))

	s := stateOf(p)
	t.Logf("chunks: %+v\ncache: %+v", s.Chunks, s.Cache)
	if s.Chunks.Failures > 0 || s.Cache.Damaged > 0 || s.Cache.Changed > 0 {
		t.Errorf("%d chunks were not fetched; of objects %d were damaged, %d changed", s.Chunks.Failures, s.Cache.Damaged, s.Cache.Changed)
	}
	p.must(p.b.Close())
	verifyCache(t, filepath.Join(p.b.DaemonRoot(), "cache"), o.tree, c.budget)
}

// read has readers of all habits at the image while it is pressed.
func (c pressed) read(p *pair, o original) {
	t := p.t
	dir, unmount, err := p.b.MountImage(t.Context(), lazy, o.cid)
	p.must(err)
	defer func() {
		if err := unmount(); err != nil {
			t.Error(err)
		}
	}()
	readers := startReaders(p, dir, o.dir)
	defer readers.stop()
	c.press(p, readers)
}

// untilEvicted waits until the cache has evicted what was read, while the rest
// was being fetched ahead and objects were being verified.
func untilEvicted(p *pair, readers *readers) {
	readers.until("evictions", func() bool {
		s := stateOf(p)
		withinBudget(p.t, s.Cache)
		return s.Cache.EvictedObjects >= 20 && s.Chunks.Prefetch.Chunks > 0 && s.Cache.ScrubbedObjects > 0
	})
}

// untilRefused waits until the cache had no room for what was read many times.
func untilRefused(p *pair, readers *readers) {
	readers.until("refusals", func() bool {
		s := stateOf(p)
		withinBudget(p.t, s.Cache)
		return s.Cache.Refused >= 20 && s.Chunks.Demand.Bytes > 2*s.Cache.Limit
	})
}

// untilFullAndEmpty fills the disk up while it is being read from, waits until
// the cache had no room many times, and makes room: contents are kept again.
func untilFullAndEmpty(p *pair, readers *readers) {
	var full cache.Usage
	readers.until("a full disk", func() bool {
		p.must(fill(ballast(p.b)))
		full = stateOf(p).Cache
		return full.Refused >= 20
	})
	p.must(os.Remove(ballast(p.b)))
	readers.until("contents to be kept again", func() bool {
		return stateOf(p).Cache.Bytes >= full.Bytes+pressureContents/8
	})
}

// overBudget are bytes by which a cache may be over its budget for a moment: a
// file system may need a block more for a file than its bytes do.
const overBudget = 64 << 10

// withinBudget checks what a cache says that it holds.
func withinBudget(t *testing.T, u cache.Usage) {
	t.Helper()
	if u.Bytes > u.Limit+overBudget {
		t.Errorf("the cache holds %d bytes, and %d is the limit", u.Bytes, u.Limit)
	}
}

// stateOf asks b's daemon what it does.
func stateOf(p *pair) lazyfs.State {
	p.t.Helper()
	out, err := p.b.Stargz(p.t.Context(), "status", "--json")
	p.must(err)
	var s struct{ Files lazyfs.State }
	p.must(json.Unmarshal([]byte(out), &s))
	return s.Files
}

// readers are processes that read one tree, one of each habit.
type readers struct {
	t    *testing.T
	list []*reader.Process
}

// startReaders starts them on node b.
func startReaders(p *pair, got, want string) *readers {
	p.t.Helper()
	self, err := os.Executable()
	p.must(err)
	rs := &readers{t: p.t}
	for i, habit := range reader.Habits {
		plan := reader.Plan{Got: got, Want: want, Habit: habit, Seed: pressureSeed + uint64(i), Least: pressureReads}
		r, err := reader.Start(p.b.Command(p.t.Context(), self, reader.Argument), p.b.Namespace.Start, plan)
		if err != nil {
			rs.stop()
			p.t.Fatal(err)
		}
		rs.list = append(rs.list, r)
	}
	return rs
}

// until has them read on until something is so, or one of them ends, which none
// does unless something is wrong.
func (rs *readers) until(what string, so func() bool) {
	rs.t.Helper()
	var once sync.Once
	ended := make(chan struct{})
	for _, r := range rs.list {
		go func() {
			<-r.Done()
			once.Do(func() { close(ended) })
		}()
	}
	// To ask a daemon costs a process, which is not to be what there is too
	// little time for.
	again := time.NewTicker(500 * time.Millisecond)
	defer again.Stop()
	for late := time.After(4 * time.Minute); !so(); {
		select {
		case <-again.C:
		case <-ended:
			rs.t.Fatalf("a reader ended while the others waited for %s", what)
		case <-late:
			rs.t.Fatalf("the readers waited in vain for %s", what)
		}
	}
}

// stop ends them, and says what they found.
func (rs *readers) stop() {
	for _, r := range rs.list {
		report, err := r.Stop(readPatience)
		switch {
		case err != nil:
			rs.t.Error(err)
		case report.Failure != "":
			rs.t.Error(report.Failure)
		default:
			rs.t.Logf("%d comparisons of %d bytes", report.Comparisons, report.Bytes)
		}
	}
}

// ballast is a file beside what a daemon keeps, for nothing but to be there.
func ballast(n *testbed.Node) string { return filepath.Join(n.DaemonRoot(), "ballast") }

// mountRoot puts the root of a node's daemon, which does not run yet, on a disk
// that has room for some of what will be read. When the test ends, after the
// daemon, nothing may use the disk any more.
func mountRoot(t *testing.T, n *testbed.Node) {
	t.Helper()
	disk := disktest.Mount(t, pressureDisk)
	err := errors.Join(
		os.Mkdir(n.DaemonRoot(), 0o711),
		unix.Mount(disk, n.DaemonRoot(), "", unix.MS_BIND, ""))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(n.DaemonRoot(), 0); err != nil {
			t.Errorf("the daemon has ended, but not all use of its disk: %v", err)
		}
	})
	if err := os.WriteFile(ballast(n), make([]byte, pressureBallast), 0o600); err != nil {
		t.Fatal(err)
	}
}

// fill makes a file longer until there is not a byte left on its disk.
func fill(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	for n := 1 << 20; n > 0; {
		_, err := f.Write(make([]byte, n))
		if errors.Is(err, unix.ENOSPC) {
			n /= 2
		} else if err != nil {
			return err
		}
	}
	return nil
}

// verifyCache reads what a daemon that has ended left in its cache: every object
// is what it is called, or the contents of some file of the tree, and all
// together keep to the budget.
func verifyCache(t *testing.T, dir string, tree treediff.Tree, budget int64) {
	t.Helper()
	known := map[string]bool{}
	for _, n := range tree {
		known[n.SHA256] = true
	}
	objects, used := 0, int64(0)
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		used += st.Blocks * 512
		if filepath.Base(filepath.Dir(path)) != "objects" {
			return nil
		}
		objects++
		data, err := os.ReadFile(path)
		sum := sha256.Sum256(data)
		if name := hex.EncodeToString(sum[:]); name != d.Name() && !known[name] {
			t.Errorf("object %s has the contents of no file: %d bytes with the hash %s", d.Name(), len(data), name)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	if budget > 0 && used > budget+overBudget {
		t.Errorf("the cache occupies %d bytes of the disk, and its budget is %d", used, budget)
	}
	t.Logf("%d objects are left, and the cache occupies %d bytes", objects, used)
}
