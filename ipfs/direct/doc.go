// Package direct fetches blocks from connected peers, and serves them, over
// libp2p streams: block by block at the speed of a web server, where bitswap
// lets 20 ms pass before every dependent read.
//
// Two protocols make it up. Blocks go by the trustless gateway's
// (https://specs.ipfs.tech/http-gateways/trustless-gateway/): GET
// /ipfs/CID?format=raw in HTTP/1.1 on a stream of the protocol /http/1.1, as
// Kubo speaks it with Experimental.GatewayOverLibp2p. Who serves answers from
// its store alone and looks nowhere else. Which parts of a file a peer holds,
// it tells whoever watches the file, as it comes and goes (have.go).
//
// An [Exchange] is both sides. What is wanted is kept in one place for all
// callers (want.go), and given to peers by one rule (schedule.go): what somebody
// waits for goes at once to whoever will have it here first, and to a second
// peer when the first is later than usual; what nobody waits for goes to
// all holders, rarest part first, as much at a time as keeps a peer's link busy
// and its queue short (meter.go), and stands back while somebody waits. Each
// block is asked for once.
package direct
