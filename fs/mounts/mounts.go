// Package mounts has the kernel serve what it can serve itself: trees (EROFS
// images of names and metadata, package tree) and overlays over them. It finds
// out once, by trying, in which of several ways this kernel does that, and then
// mounts in that way. A version string tells nothing of what a distribution has
// built in, or what the file system below allows.
//
// It also finds, unmounts and reconfigures what is mounted.
package mounts

import (
	"fmt"
	"strings"
)

// Kernel is what this machine's kernel can do, as [Probe] found out. It is not
// changed afterwards, and safe for concurrent use.
type Kernel struct {
	// Trees is how a tree is mounted; empty: not at all.
	Trees TreeSource `json:"trees"`
	// Data is how an overlay with data-only layers over a tree is mounted;
	// empty: not at all.
	Data OptionSet `json:"data_overlays"`
	// Names is how an overlay with data-only layers over names that no EROFS
	// serves is mounted; empty: not at all.
	Names OptionSet `json:"data_overlays_over_fuse"`
	// Plain is how an overlay without data-only layers is mounted; empty: not
	// at all.
	Plain OptionSet `json:"plain_overlays"`
	// IDMapped is whether a tree can be shown with other owners, as containers
	// in user namespaces need it.
	IDMapped bool `json:"id_mapped"`
	// Refused is what was tried in vain, in the order in which it was tried.
	Refused []Refusal `json:"refused,omitempty"`
}

// Kinds of steps that [Probe] tries: what their names begin with.
const (
	StepPlain  = "overlay by "
	StepNames  = "overlay over names "
	StepTree   = "EROFS from a "
	StepData   = "overlay over EROFS "
	StepOwners = "other owners of EROFS "
)

// Refusal is a way to mount that this kernel does not take, and its reason.
type Refusal struct {
	Step string `json:"step"`
	Why  string `json:"why"`
}

// TreeSource is what the kernel reads a tree from.
type TreeSource string

const (
	// FromFile is the image itself (Linux 6.12 with
	// CONFIG_EROFS_FS_BACKED_BY_FILE). The image cannot lie on overlayfs, and
	// some kernels count the tree as one file system on another, of which they
	// allow two, overlays among them.
	FromFile TreeSource = "file"
	// FromLoop is a loop device, which counts as none.
	FromLoop TreeSource = "loop device"
)

// OptionSet is a way to tell overlayfs its layers.
type OptionSet string

const (
	// Separate names each layer for itself, by fsconfig(2): lowerdir+ and
	// datadir+. metacopy is on only where a tree lies over a normal layer
	// (Linux 6.16).
	Separate OptionSet = "lowerdir+"
	// SeparateMetacopy is the same with metacopy always on, which makes a chmod
	// copy no contents up (Linux 6.8).
	SeparateMetacopy OptionSet = "lowerdir+,metacopy=on"
	// OneString names all layers in one option of mount(2), lowerdir=a:b::c,
	// which a page bounds. With data-only layers metacopy is on (Linux 6.5).
	OneString OptionSet = "lowerdir="
)

// String says how lazy layers are mounted, in one line.
func (k *Kernel) String() string {
	if k.Data == "" {
		return "no overlay over a tree can be mounted"
	}
	return fmt.Sprintf("EROFS is mounted from a %s, and overlayfs takes %s", k.Trees, k.Data)
}

// Reasons says in one line why all steps of this kind were refused; "" is for
// those of every kind.
func (k *Kernel) Reasons(kind string) string {
	var all []string
	for _, r := range k.Refused {
		if strings.HasPrefix(r.Step, kind) {
			all = append(all, r.Step+": "+r.Why)
		}
	}
	return strings.Join(all, "; ")
}
