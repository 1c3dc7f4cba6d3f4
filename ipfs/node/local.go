package node

import "github.com/ipfs-stargz/ipfs-stargz/ipfs/store"

// Local returns the node's own blocks, where they are pinned, counted and
// collected. It is the node's: it closes it.
func (n *Node) Local() *store.Store { return n.store }
