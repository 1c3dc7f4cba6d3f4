// An independent IPFS node for the integration tests: helia, which shares no
// code with ours. It dials one peer over TCP, Noise and Yamux, and exchanges
// blocks with it by bitswap. It talks to nobody else: nothing of helia's
// defaults (bootstrap nodes, delegated routers, gateways, mDNS, AutoNAT, UPnP,
// relays) is in it, and it does not listen.
//
// Usage:
//
//   node peer.mjs KEYFILE id            prints the peer id; makes the key first
//   node peer.mjs KEYFILE serve ADDR    dials ADDR, then obeys standard input
//
// A line of input is a JSON object, answered by one line:
//
//   {"cat": CID, "to": FILE}   writes the file's bytes: {"bytes": N}
//   {"add": FILE}              {"cid": CID}; serves its blocks from then on
//
// or by {"error": TEXT}. It ends with its input.

import { createReadStream, createWriteStream } from 'node:fs'
import { readFile, writeFile } from 'node:fs/promises'
import { createInterface } from 'node:readline'
import { Readable } from 'node:stream'
import { pipeline } from 'node:stream/promises'

import { withBitswap } from '@helia/bitswap'
import { withLibp2pLight } from '@helia/libp2p'
import { unixfs } from '@helia/unixfs'
import { generateKeyPair, privateKeyFromProtobuf, privateKeyToProtobuf } from '@libp2p/crypto/keys'
import { identify } from '@libp2p/identify'
import { noise } from '@libp2p/noise'
import { peerIdFromPrivateKey } from '@libp2p/peer-id'
import { tcp } from '@libp2p/tcp'
import { yamux } from '@libp2p/yamux'
import { multiaddr } from '@multiformats/multiaddr'
import { createHeliaLight } from 'helia'
import { CID } from 'multiformats/cid'

// Longer than anything takes here, so that a failure is an answer.
const patience = 60_000

async function loadKey (path) {
  try {
    return privateKeyFromProtobuf(await readFile(path))
  } catch (err) {
    if (err.code !== 'ENOENT') throw err
  }
  const key = await generateKeyPair('Ed25519')
  await writeFile(path, privateKeyToProtobuf(key), { mode: 0o600 })
  return key
}

function newNode (privateKey) {
  const light = createHeliaLight()
  const connected = withLibp2pLight(light, {
    privateKey,
    addresses: { listen: [] },
    transports: [tcp()],
    connectionEncrypters: [noise()],
    streamMuxers: [yamux()],
    services: { identify: identify() }
  })
  return withBitswap(connected)
}

async function obey (fs, order) {
  const signal = AbortSignal.timeout(patience)
  if (order.cat != null) {
    const file = createWriteStream(order.to)
    await pipeline(Readable.from(fs.cat(CID.parse(order.cat), { signal })), file)
    return { bytes: file.bytesWritten }
  }
  if (order.add != null) {
    const cid = await fs.addByteStream(createReadStream(order.add), { signal })
    return { cid: cid.toString() }
  }
  throw new Error(`no such order: ${JSON.stringify(order)}`)
}

async function serve (key, addr) {
  const helia = newNode(key)
  await helia.start()
  try {
    await helia.libp2p.dial(multiaddr(addr), { signal: AbortSignal.timeout(patience) })
    const fs = unixfs(helia)
    console.log(JSON.stringify({ connected: addr }))
    for await (const line of createInterface({ input: process.stdin })) {
      let answer
      try {
        answer = await obey(fs, JSON.parse(line))
      } catch (err) {
        answer = { error: err.stack }
      }
      console.log(JSON.stringify(answer))
    }
  } finally {
    await helia.stop()
  }
}

const [keyFile, command, addr] = process.argv.slice(2)
const key = await loadKey(keyFile)
switch (command) {
  case 'id':
    console.log(peerIdFromPrivateKey(key).toString())
    break
  case 'serve':
    await serve(key, addr)
    break
  default:
    throw new Error('usage: node peer.mjs KEYFILE id | serve ADDR')
}
