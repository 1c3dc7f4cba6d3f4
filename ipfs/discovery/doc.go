// Package discovery finds the nodes that hold something: the DHT, the public
// one of the IPFS network or one of our own under its own name ([Routing]);
// names of the DNS behind which nodes come and go ([Names]); and multicast on
// the local network ([MDNS]).
//
// It only finds. Who may be talked to is the connection gater's to say (package
// ipfs/node), which every dial passes; what is found is offered to it first all
// the same, so that a peer that is not allowed costs nothing.
package discovery
