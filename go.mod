module github.com/ipfs-stargz/ipfs-stargz

go 1.26.8
