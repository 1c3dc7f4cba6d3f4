package node

import (
	"context"
	"errors"
	"testing"

	"github.com/ipfs/boxo/bitswap"
	"github.com/ipfs/boxo/bitswap/network/bsnet"
	"github.com/ipfs/boxo/blockstore"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"github.com/ipfs/go-datastore"
	dssync "github.com/ipfs/go-datastore/sync"
	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs/blockstest"
)

// The blocks come from another node.
func TestSuiteFromNode(t *testing.T) {
	blockstest.Run(t, func(t *testing.T) blockstest.Fixture {
		client, server := pair(t)
		return blockstest.Fixture{
			Blocks: client,
			Put:    func(t testing.TB, bs ...blocks.Block) { put(t, server, bs...) },
			Plant:  func(t testing.TB, c cid.Cid, data []byte) { plant(t, server, c, data) },
		}
	})
}

// The blocks are in the node's own store; damaged ones are nowhere else.
func TestSuiteFromStore(t *testing.T) {
	blockstest.Run(t, func(t *testing.T) blockstest.Fixture {
		n := open(t, Config{})
		return blockstest.Fixture{
			Blocks: n,
			Put:    func(t testing.TB, bs ...blocks.Block) { put(t, n, bs...) },
			Plant:  func(t testing.TB, c cid.Cid, data []byte) { plant(t, n, c, data) },
		}
	})
}

// plant stores data as they are.
func plant(t testing.TB, n *Node, c cid.Cid, data []byte) {
	t.Helper()
	b, err := blocks.NewBlockWithCid(data, c)
	if err != nil {
		t.Fatal(err)
	}
	n.store.Keep(b)
}

// The blocks come from boxo's own bitswap over a store that verifies nothing:
// what other IPFS nodes run, and a peer that lies.
func TestSuiteFromForeignBitswap(t *testing.T) {
	blockstest.Run(t, func(t *testing.T) blockstest.Fixture {
		h, err := libp2p.New(libp2p.ListenAddrStrings(loopback), libp2p.Transport(tcp.NewTCPTransport),
			libp2p.DisableRelay(), libp2p.DisableMetrics(), libp2p.ResourceManager(&network.NullResourceManager{}))
		if err != nil {
			t.Fatal(err)
		}
		bs := blockstore.NewBlockstore(dssync.MutexWrap(datastore.NewMapDatastore()), blockstore.WriteThrough(true))
		ex := bitswap.New(context.Background(), bsnet.NewFromIpfsHost(h), nil, bs)
		t.Cleanup(func() {
			if err := errors.Join(ex.Close(), h.Close()); err != nil {
				t.Error(err)
			}
		})
		plant := func(t testing.TB, c cid.Cid, data []byte) {
			b, err := blocks.NewBlockWithCid(data, c)
			if err != nil {
				t.Fatal(err)
			}
			if err := bs.Put(context.Background(), b); err != nil {
				t.Fatal(err)
			}
			if err := ex.NotifyNewBlocks(context.Background(), b); err != nil {
				t.Fatal(err)
			}
		}
		return blockstest.Fixture{
			Blocks: open(t, Config{Peers: fullAddrs(h.ID(), h.Addrs())}),
			Put: func(t testing.TB, all ...blocks.Block) {
				for _, b := range all {
					plant(t, b.Cid(), b.RawData())
				}
			},
			Plant: plant,
		}
	})
}
