package node

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/blockstest"
)

// What was fetched is kept and served on, and needs the network no more.
func TestKeepsWhatItFetched(t *testing.T) {
	dir := t.TempDir()
	server := open(t, Config{Peers: []string{"/p2p/" + identity(t, dir)}})
	b := blockstest.Random(t, 1, 256<<10)
	put(t, server, b)
	client := open(t, Config{Dir: dir, Peers: server.Addrs()})
	wantBlock(t, client, b)
	if s := client.Stats(); s.BlocksFetched != 1 || s.BytesFetched != 256<<10 || s.BytesReceived != 256<<10 {
		t.Errorf("client's stats: %+v", s)
	}
	if s := server.Stats(); s.BlocksSent != 1 || s.BytesSent != 256<<10 {
		t.Errorf("server's stats: %+v", s)
	}
	if err := errors.Join(server.Close(), client.Close()); err != nil {
		t.Fatal(err)
	}
	client = open(t, Config{Dir: dir})
	if ok, err := client.Has(t.Context(), b.Cid()); !ok || err != nil {
		t.Errorf("Has: %v, %v", ok, err)
	}
	wantBlock(t, client, b)
}

// A chain: the last has no connection to the first.
func TestServesWhatItFetched(t *testing.T) {
	dir1, dir2 := t.TempDir(), t.TempDir()
	first := open(t, Config{Peers: []string{"/p2p/" + identity(t, dir1)}})
	middle := open(t, Config{Dir: dir1, Peers: append(first.Addrs(), "/p2p/"+identity(t, dir2))})
	last := open(t, Config{Dir: dir2, Peers: middle.Addrs(), FetchTimeout: 30 * time.Second})
	b := blockstest.Random(t, 1, 256<<10)
	put(t, first, b)
	connected(t, last, 1)
	// The last one asks before the middle has it, and gets it when it has.
	done := make(chan error)
	go func() {
		_, err := fetch(t, last, b.Cid())
		done <- err
	}()
	eventually(t, "the middle knows the want", func() bool {
		return len(middle.bitswap.WantlistForPeer(last.host.ID())) > 0
	})
	wantBlock(t, middle, b)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// A damaged block on disk is fetched again, and replaced on disk.
func TestDamagedBlockIsFetchedAgain(t *testing.T) {
	client, server := pair(t)
	b := blockstest.Random(t, 1, 5000)
	put(t, server, b)
	wantBlock(t, client, b)
	stored := func() bool {
		ok, err := client.store.Has(t.Context(), b.Cid())
		return ok && err == nil
	}
	eventually(t, "the block is stored", stored)
	blockstest.Damage(t, client.store, b.Cid())
	before := client.Stats().BlocksFetched
	wantBlock(t, client, b)
	if n := client.Stats().BlocksFetched - before; n != 1 {
		t.Errorf("%d blocks were fetched, want 1", n)
	}
	eventually(t, "the block is replaced", stored)
	if got, err := client.store.Get(t.Context(), b.Cid()); err != nil || !bytes.Equal(got.RawData(), b.RawData()) {
		t.Errorf("the block was not replaced: %v", err)
	}
}

// Pushing a block again mends a damaged one.
func TestPutMendsDamagedBlock(t *testing.T) {
	n := open(t, Config{})
	b := blockstest.Random(t, 1, 5000)
	put(t, n, b)
	blockstest.Damage(t, n.store, b.Cid())
	put(t, n, b)
	if err := n.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantBlock(t, n, b)
}

func TestPutVerifies(t *testing.T) {
	n := open(t, Config{})
	good := blockstest.Random(t, 1, 100)
	bad, err := blocks.NewBlockWithCid([]byte("other"), good.Cid())
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Put(t.Context(), bad); !errors.Is(err, ipfs.ErrBadBlock) {
		t.Errorf("Put: %v, want ErrBadBlock", err)
	}
	if err := n.Put(t.Context(), blockstest.Random(t, 2, ipfs.MaxBlockSize+1)); !errors.Is(err, ipfs.ErrTooLarge) {
		t.Errorf("Put: %v, want ErrTooLarge", err)
	}
	if ok, err := n.Has(t.Context(), good.Cid()); ok || err != nil {
		t.Errorf("Has: %v, %v", ok, err)
	}
}

// The provider goes away, and comes back at the same address.
func TestProviderGoneAndBack(t *testing.T) {
	serverDir, clientDir := t.TempDir(), t.TempDir()
	allow := []string{"/p2p/" + identity(t, clientDir)}
	server := open(t, Config{Dir: serverDir, Peers: allow})
	a, b, c := blockstest.Random(t, 1, 1000), blockstest.Random(t, 2, 1000), blockstest.Random(t, 3, 1000)
	put(t, server, a, b, c)
	addrs := server.Addrs()
	client := open(t, Config{Dir: clientDir, Peers: addrs, FetchTimeout: time.Second})
	wantBlock(t, client, a)

	if err := server.Close(); err != nil {
		t.Fatal(err)
	}
	connected(t, client, 0)
	_, err := fetch(t, client, b.Cid())
	var u *ipfs.UnavailableError
	if !errors.As(err, &u) || !slices.Equal(u.CIDs, []cid.Cid{b.Cid()}) || len(u.Asked) > 0 {
		t.Fatalf("Get: %v, want an UnavailableError that asked nobody", err)
	}
	if !strings.Contains(err.Error(), "no peer is connected") {
		t.Errorf("the text %q does not say that no peer is connected", err)
	}
	wantBlock(t, client, a) // what is here needs nobody

	listen := strings.Split(addrs[0], "/p2p/")[0]
	open(t, Config{Dir: serverDir, Listen: []string{listen}, Peers: allow})
	eventually(t, "reads work again", func() bool {
		_, err := fetch(t, client, b.Cid())
		return err == nil
	})
	wantBlock(t, client, c)
}

// One provider leaves, and another takes its place: the number of peers is the
// same, and what the client learned of the first does not hold it up.
func TestProviderReplaced(t *testing.T) {
	dir := t.TempDir()
	allow := []string{"/p2p/" + identity(t, dir)}
	first, second := open(t, Config{Peers: allow}), open(t, Config{Peers: allow})
	a, b := blockstest.Random(t, 1, 1000), blockstest.Random(t, 2, 1000)
	put(t, first, a)
	put(t, second, b)
	client := open(t, Config{Dir: dir, Peers: append(first.Addrs(), second.Addrs()...)})
	wantBlock(t, client, a) // its session knows the first
	connected(t, client, 2)
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	connected(t, client, 1)
	wantBlock(t, client, b)
}

// A read that began while nobody was there gets its block from who comes.
func TestProviderComesDuringGet(t *testing.T) {
	serverDir, clientDir := t.TempDir(), t.TempDir()
	allow := []string{"/p2p/" + identity(t, clientDir)}
	server := open(t, Config{Dir: serverDir, Peers: allow})
	b := blockstest.Random(t, 2, 1000)
	put(t, server, b)
	addrs := server.Addrs()
	if err := server.Close(); err != nil {
		t.Fatal(err)
	}
	client := open(t, Config{Dir: clientDir, Peers: addrs, FetchTimeout: 30 * time.Second})
	done := make(chan error)
	go func() {
		_, err := fetch(t, client, b.Cid())
		done <- err
	}()
	eventually(t, "it is wanted", func() bool { return len(client.bitswap.GetWantlist()) > 0 })
	open(t, Config{Dir: serverDir, Listen: []string{strings.Split(addrs[0], "/p2p/")[0]}, Peers: allow})
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// Two readers of one block are one want, and one transfer.
func TestReadersShareAWant(t *testing.T) {
	client, server := pair(t)
	connected(t, client, 1)
	b := blockstest.Random(t, 1, 1<<20)
	var readers sync.WaitGroup
	for range 8 {
		readers.Go(func() { wantBlock(t, client, b) })
	}
	eventually(t, "it is wanted", func() bool { return len(client.bitswap.GetWantlist()) > 0 })
	put(t, server, b)
	readers.Wait()
	for range 100 {
		wantBlock(t, client, b)
	}
	if s := server.Stats(); s.BlocksSent != 1 {
		t.Errorf("the server sent %d blocks, want 1", s.BlocksSent)
	}
}

// Closing wakes who waits.
func TestCloseDuringGet(t *testing.T) {
	n := open(t, Config{FetchTimeout: time.Minute, Peers: []string{"/p2p/" + identity(t, t.TempDir())}})
	done := make(chan error)
	go func() {
		_, err := fetch(t, n, blockstest.Random(t, 1, 10).Cid())
		done <- err
	}()
	eventually(t, "it is wanted", func() bool { return len(n.bitswap.GetWantlist()) > 0 })
	if err := n.Close(); err != nil {
		t.Error(err)
	}
	if err := <-done; !errors.Is(err, errClosed) {
		t.Errorf("Get: %v, want %v", err, errClosed)
	}
}

func TestIdentity(t *testing.T) {
	dir := t.TempDir()
	n := open(t, Config{Dir: dir})
	id := n.ID()
	if !strings.HasSuffix(n.Addrs()[0], "/p2p/"+id) {
		t.Errorf("Addrs: %v", n.Addrs())
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	if n = open(t, Config{Dir: dir}); n.ID() != id {
		t.Errorf("the id was %s, and is %s after reopening", id, n.ID())
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "identity.key")
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
		t.Errorf("mode %v, %v; want 0600", info.Mode(), err)
	}
	if err := os.WriteFile(path, []byte("damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), Config{Dir: dir, Listen: []string{loopback}}); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("Open with a damaged identity: %v, want an error that names the file", err)
	}
}

func TestDirInUse(t *testing.T) {
	dir := t.TempDir()
	open(t, Config{Dir: dir})
	if _, err := Open(t.Context(), Config{Dir: dir}); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("Open: %v, want an error that says it is in use", err)
	}
}

func TestConfigErrors(t *testing.T) {
	dir := t.TempDir()
	badKey := filepath.Join(dir, "bad.key")
	if err := os.WriteFile(badKey, []byte("/key/swarm/psk/1.0.0/\n/base16/\nabcd"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]Config{
		"no directory":                  {},
		"peer without an id":            {Dir: dir, Peers: []string{"/ip4/127.0.0.1/tcp/4011"}},
		"peer that is no multiaddr":     {Dir: dir, Peers: []string{"host:4011"}},
		"announce that is no multiaddr": {Dir: dir, Announce: []string{"host:4011"}},
		"listen that is no multiaddr":   {Dir: dir, Listen: []string{"host:4011"}},
		"swarm key missing":             {Dir: dir, SwarmKeyFile: filepath.Join(dir, "none")},
		"swarm key too short":           {Dir: dir, SwarmKeyFile: badKey},
	} {
		if n, err := Open(t.Context(), c); err == nil {
			t.Errorf("%s: no error", name)
			if err := n.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}

func TestAnnounce(t *testing.T) {
	const addr = "/ip4/192.0.2.1/tcp/4011"
	n := open(t, Config{Announce: []string{addr}})
	if want := []string{addr + "/p2p/" + n.ID()}; !slices.Equal(n.Addrs(), want) {
		t.Errorf("Addrs %v, want %v", n.Addrs(), want)
	}
}

func BenchmarkGet(b *testing.B) {
	client, server := pair(b)
	connected(b, client, 1)
	const size = 256 << 10
	b.Run("one after the other", func(b *testing.B) {
		b.SetBytes(size)
		seed := uint64(time.Now().UnixNano())
		for b.Loop() {
			b.StopTimer()
			seed++
			block := blockstest.Random(b, seed, size)
			put(b, server, block)
			b.StartTimer()
			if _, err := fetch(b, client, block.Cid()); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("400 at once", func(b *testing.B) {
		b.SetBytes(400 * size)
		seed := uint64(time.Now().UnixNano())
		for b.Loop() {
			b.StopTimer()
			var cids []cid.Cid
			for range 400 {
				seed++
				block := blockstest.Random(b, seed, size)
				put(b, server, block)
				cids = append(cids, block.Cid())
			}
			b.StartTimer()
			if err := client.Get(b.Context(), ipfs.Want{CIDs: cids}, func(cid.Cid, []byte) error { return nil }); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("from the store", func(b *testing.B) {
		block := blockstest.Random(b, 1, size)
		put(b, client, block)
		b.SetBytes(size)
		for b.Loop() {
			if _, err := fetch(b, client, block.Cid()); err != nil {
				b.Fatal(err)
			}
		}
	})
}
