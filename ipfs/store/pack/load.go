package pack

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// load reads what the directory holds. What is not one of our files stays.
func (p *Packs) load() error {
	files, err := os.ReadDir(p.dir)
	if err != nil {
		return err
	}
	var ids []uint32
	for _, f := range files {
		for _, suffix := range []string{dataSuffix, indexSuffix} {
			name, ok := strings.CutSuffix(f.Name(), suffix)
			id, err := strconv.ParseUint(name, 16, 32)
			if ok && err == nil && filepath.Base(p.path(uint32(id), suffix)) == f.Name() {
				ids = append(ids, uint32(id))
			}
		}
	}
	slices.Sort(ids)
	ids = slices.Compact(ids)
	for _, id := range ids {
		if err := p.loadPack(id); err != nil {
			return err
		}
	}
	for _, id := range ids {
		k := p.packs[id]
		if k != nil && k.live == 0 && k != p.last {
			if err := p.removeFiles(k); err != nil {
				return err
			}
		}
	}
	if p.last != nil {
		return p.openLast()
	}
	return nil
}

// loadPack reads a pack's index. A pack of which a file is missing goes.
func (p *Packs) loadPack(id uint32) error {
	info, err := os.Stat(p.path(id, dataSuffix))
	var raw []byte
	if err == nil {
		raw, err = readIndex(p.path(id, indexSuffix))
	}
	if errors.Is(err, os.ErrNotExist) {
		p.log.Warn("half a pack of blocks is removed; they will be fetched again", "path", filepath.Join(p.dir, fmt.Sprintf("%08x.*", id)))
		for _, suffix := range []string{dataSuffix, indexSuffix} {
			if err := os.Remove(p.path(id, suffix)); err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
		}
		return nil
	}
	if err != nil {
		return err
	}
	k := &pack{id: id, end: (info.Size() + page - 1) / page}
	times, entries := raw[:min(timesSize, len(raw))], raw[min(timesSize, len(raw)):]
	p.packs[id], p.last = k, k
	var lost []ref // else they would be found again where others are then
	for i := 0; i < fullSlots && (i+1)*entrySize <= len(entries); i++ {
		s, _, ok := decode(entries[i*entrySize:][:entrySize])
		if ok && int64(s.first)+s.pages() > k.end {
			ok = false
			lost = append(lost, ref{id, uint32(i)})
		}
		if !ok {
			k.slots = append(k.slots, slot{})
			continue
		}
		if later := binary.LittleEndian.Uint32(times[4*i:]); later != 0 {
			s.used = later
		}
		if at, was := p.index[s.key]; was {
			p.drop(at) // it was replaced, or was about to be moved
		}
		p.index[s.key] = ref{id, uint32(i)}
		k.slots = append(k.slots, s)
		k.live++
		k.pages += s.pages()
	}
	k.holes = allocated(info) > (k.pages+1)*page
	if len(lost) > 0 {
		if err := p.forget(lost...); err != nil {
			return err
		}
	}
	return p.clearTimes(k, times)
}

// clearTimes clears the times of slots that are still to come: they are of
// entries that a power cut took.
func (p *Packs) clearTimes(k *pack, times []byte) error {
	at := 4 * len(k.slots)
	if at >= len(times) || len(bytes.Trim(times[at:], "\x00")) == 0 {
		return nil
	}
	f, err := os.OpenFile(p.path(k.id, indexSuffix), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(make([]byte, timesSize-at), int64(at))
	return errors.Join(err, f.Close())
}

// openLast opens the files of the pack that is appended to.
func (p *Packs) openLast() error {
	index, err := os.OpenFile(p.path(p.last.id, indexSuffix), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	p.last.index = index
	data, err := os.OpenFile(p.path(p.last.id, dataSuffix), os.O_RDWR, 0)
	if err != nil {
		return errors.Join(err, index.Close())
	}
	p.opened(p.last, data)
	return nil
}

// allocated is how many bytes of the file system a file takes.
func allocated(info os.FileInfo) int64 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return st.Blocks * 512
	}
	return info.Size()
}

// readIndex reads no more than an index can have.
func readIndex(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, entryOffset(fullSlots)))
}
