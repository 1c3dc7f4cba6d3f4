package direct

import (
	"iter"
	"math/bits"
)

// set is a set of small numbers: parts of a file, by their place in it.
type set []uint64

func (s set) has(i int) bool { return i>>6 < len(s) && s[i>>6]&(1<<(i&63)) != 0 }

// add puts i into the set, and tells whether it was not there before.
func (s *set) add(i int) bool {
	for i>>6 >= len(*s) {
		*s = append(*s, 0)
	}
	was := (*s)[i>>6]
	(*s)[i>>6] |= 1 << (i & 63)
	return was != (*s)[i>>6]
}

// remove takes i out of the set, and tells whether it was there.
func (s set) remove(i int) bool {
	if !s.has(i) {
		return false
	}
	s[i>>6] &^= 1 << (i & 63)
	return true
}

// word returns the members i of 64*w <= i < 64*w+64, as bits.
func (s set) word(w int) uint64 {
	if w < len(s) {
		return s[w]
	}
	return 0
}

// span is the numbers from first to last, both included.
type span struct{ first, last int }

// spans yields the runs of numbers that are in s and not in t, in order.
func (s set) spans(t set) iter.Seq[span] {
	return func(yield func(span) bool) {
		open := span{first: -1}
		for w := range s {
			diff := s[w] &^ t.word(w)
			for diff != 0 {
				from := bits.TrailingZeros64(diff)
				n := bits.TrailingZeros64(^(diff >> from))
				first := w<<6 + from
				if open.first >= 0 && open.last+1 == first {
					open.last = first + n - 1
				} else {
					if open.first >= 0 && !yield(open) {
						return
					}
					open = span{first, first + n - 1}
				}
				if from+n == 64 {
					break
				}
				diff &^= (1<<n - 1) << from
			}
		}
		if open.first >= 0 {
			yield(open)
		}
	}
}

func (s set) count() (n int) {
	for _, w := range s {
		n += bits.OnesCount64(w)
	}
	return n
}
