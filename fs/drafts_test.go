package fs

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ipfs-stargz/ipfs-stargz/fs/layer"
	"github.com/ipfs-stargz/ipfs-stargz/fs/tree"
)

// draftOf returns a draft of so many names.
func draftOf(t *testing.T, names int) *tree.Merge {
	t.Helper()
	m := tree.NewMerge(false)
	entries := make([]layer.Entry, names)
	for i := range entries {
		entries[i] = layer.Entry{Name: fmt.Sprint(i), Type: layer.Dir}
	}
	if err := m.Add(t.Context(), entries); err != nil {
		t.Fatal(err)
	}
	return m
}

func wantDrafts(t *testing.T, ds *drafts, names int, want ...string) {
	t.Helper()
	ds.mu.Lock()
	defer ds.mu.Unlock()
	if len(ds.byRun) != len(want) || ds.names != names {
		t.Errorf("%d drafts of %d names, want %d of %d", len(ds.byRun), ds.names, len(want), names)
	}
	for _, name := range want {
		if _, ok := ds.byRun[name]; !ok {
			t.Errorf("draft %s is gone", name)
		}
	}
}

func TestDraftsAreBounded(t *testing.T) {
	ds := newDrafts()
	defer ds.close()
	ds.maxNames = 10
	for _, name := range []string{"a", "b", "c"} {
		ds.put(name, draftOf(t, 3))
	}
	wantDrafts(t, ds, 9, "a", "b", "c")
	ds.put("a", draftOf(t, 4)) // in place of the other, and the youngest now
	wantDrafts(t, ds, 10, "a", "b", "c")
	ds.put("d", draftOf(t, 1))
	wantDrafts(t, ds, 8, "a", "c", "d")
	ds.put("large", draftOf(t, 11))
	wantDrafts(t, ds, 0)

	ds.put("e", draftOf(t, 5))
	if m, ok := ds.take("e"); !ok || m.Names() != 5 {
		t.Error("the draft is not what was put")
	}
	if _, ok := ds.take("e"); ok {
		t.Error("a draft has two users")
	}
	wantDrafts(t, ds, 0)
}

func TestDraftsGoWhenIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ds := newDrafts()
		ds.put("a", draftOf(t, 3))
		time.Sleep(draftLife - time.Second)
		ds.put("b", draftOf(t, 3))
		time.Sleep(draftLife - time.Second)
		wantDrafts(t, ds, 6, "a", "b")
		ds.used()
		time.Sleep(draftLife - time.Second)
		wantDrafts(t, ds, 6, "a", "b")
		time.Sleep(time.Second)
		synctest.Wait()
		wantDrafts(t, ds, 0)
		ds.put("c", draftOf(t, 3)) // the timer goes again
		time.Sleep(draftLife)
		synctest.Wait()
		wantDrafts(t, ds, 0)
		ds.put("d", draftOf(t, 3))
		ds.close()
		wantDrafts(t, ds, 0)
	})
}
