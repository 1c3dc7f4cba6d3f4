package chain

import (
	"errors"
	"fmt"
	"strings"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs"
)

// unavailable makes one error of what all sources said.
func (g *get) unavailable() error {
	out := &ipfs.UnavailableError{CIDs: g.rest()}
	var why reasons
	var asked [][]string
	for i, s := range g.Chain.sources {
		r := reason{name: s.Name, err: g.errs[i]}
		if r.err == nil {
			r.err = errIncomplete
		}
		why = append(why, r)
		var names []string
		var u *ipfs.UnavailableError
		if errors.As(r.err, &u) {
			out.After = max(out.After, u.After)
			if out.Hint == "" {
				out.Hint = u.Hint
			}
			for _, a := range u.Asked {
				names = append(names, s.Name+": "+a)
			}
		}
		if len(names) == 0 {
			names = []string{s.Name + ": nobody"}
		}
		asked = append(asked, names)
	}
	out.Asked = interleave(asked)
	out.Err = why
	return out
}

// errIncomplete is for a source that breaks the contract of [ipfs.Blocks].
var errIncomplete = errors.New("it ended without an error, but not all blocks came")

// interleave takes the first of each list, then the second of each, and so on,
// because an error's text shows only the first few.
func interleave(lists [][]string) []string {
	var out []string
	for i, more := 0, true; more; i++ {
		more = false
		for _, l := range lists {
			if i < len(l) {
				out = append(out, l[i])
				more = true
			}
		}
	}
	return out
}

// reason is why one source did not give a block.
type reason struct {
	name string
	err  error
}

// reasons is an error of one line.
type reasons []reason

func (r reasons) Error() string {
	texts := make([]string, len(r))
	for i, x := range r {
		texts[i] = x.name + ": " + strings.TrimPrefix(x.text(), x.name+": ")
	}
	return strings.Join(texts, "; ")
}

// text is the error, but for what the error around it says already.
func (r reason) text() string {
	var u *ipfs.UnavailableError
	switch {
	case !errors.As(r.err, &u):
		return r.err.Error()
	case u.Err != nil:
		return u.Err.Error()
	case u.After > 0:
		return fmt.Sprintf("nothing arrived for %v", u.After)
	case len(u.Asked) == 0:
		return "no peer is connected"
	default:
		return "not there"
	}
}

// Unwrap returns the errors of all sources.
func (r reasons) Unwrap() []error {
	errs := make([]error, len(r))
	for i, x := range r {
		errs[i] = x.err
	}
	return errs
}
