package fs

import (
	"maps"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"github.com/ipfs-stargz/ipfs-stargz/fs/tree"
)

const (
	// draftLife is how long drafts are kept after the last one was used: from
	// one layer of a pull to the next, and to the container's start.
	draftLife = time.Minute
	// maxDraftNames bounds the names in all drafts together: about 220 MB.
	maxDraftNames = 512 << 10
)

// drafts are runs of layers that were merged in memory, to find out whether their
// topmost layer can lie on the others, and not written: the next layer of a pull
// comes on top of them, and the tree is built from them. So each table of contents
// is read once in a pull, however many layers there are.
//
// A draft changes when a layer comes on top of it. So it has one user at a time,
// and goes when it is used.
type drafts struct {
	life     time.Duration
	maxNames int

	mu    sync.Mutex
	byRun map[string]draft // by the names of their trees
	names int
	puts  int64 // drafts ever put
	idle  *time.Timer
}

type draft struct {
	merge *tree.Merge
	put   int64 // its number among all puts
}

func newDrafts() *drafts {
	return &drafts{life: draftLife, maxNames: maxDraftNames, byRun: map[string]draft{}}
}

// take returns the draft of the run whose tree has this name, if there is one. It
// is the caller's then.
func (ds *drafts) take(name string) (*tree.Merge, bool) {
	ds.mu.Lock()
	defer ds.mu.Unlock()
	d, ok := ds.byRun[name]
	ds.remove(name)
	return d.merge, ok
}

// put keeps a draft, for which older ones go if they are too large together.
func (ds *drafts) put(name string, m *tree.Merge) {
	ds.mu.Lock()
	defer ds.mu.Unlock()
	ds.remove(name)
	ds.puts++
	ds.byRun[name] = draft{m, ds.puts}
	ds.names += m.Names()
	for ds.names > ds.maxNames {
		ds.remove(slices.MinFunc(slices.Collect(maps.Keys(ds.byRun)), func(a, b string) int {
			return int(ds.byRun[a].put - ds.byRun[b].put)
		}))
	}
	ds.putOff()
}

// remove removes a draft if it is there. ds.mu is held.
func (ds *drafts) remove(name string) {
	if d, ok := ds.byRun[name]; ok {
		ds.names -= d.merge.Names()
		delete(ds.byRun, name)
	}
}

// used puts off the end of all drafts, and with it the return of the memory that
// a merge without a draft took.
func (ds *drafts) used() {
	ds.mu.Lock()
	defer ds.mu.Unlock()
	ds.putOff()
}

// putOff is used with ds.mu held.
func (ds *drafts) putOff() {
	if ds.idle == nil {
		ds.idle = time.AfterFunc(ds.life, ds.drop)
		return
	}
	ds.idle.Reset(ds.life)
}

// drop forgets all drafts and gives the memory of merging back to the system. Left
// alone, the collector would get to that in some minutes.
func (ds *drafts) drop() {
	ds.mu.Lock()
	clear(ds.byRun)
	ds.names = 0
	ds.mu.Unlock()
	debug.FreeOSMemory()
}

// close forgets all drafts. None is put afterwards.
func (ds *drafts) close() {
	ds.mu.Lock()
	defer ds.mu.Unlock()
	if ds.idle != nil {
		ds.idle.Stop()
	}
	clear(ds.byRun)
	ds.names = 0
}
