package snapshotter

import (
	"cmp"
	"context"
	"fmt"
	"regexp"
	"strings"
)

// The labels that can name a layer's source. containerd passes every
// annotation of a layer whose key begins with "containerd.io/snapshot/".
const (
	labelCID       = "containerd.io/snapshot/ipfs-stargz.cid"         // ours: the CID of the layer's blob
	labelTOCDigest = "containerd.io/snapshot/stargz/toc.digest"       // eStargz: the digest of its table of contents
	labelURLs      = "containerd.io/snapshot/remote/urls"             // the descriptor's urls, from stargz-snapshotter's clients
	labelCRIRef    = "containerd.io/snapshot/cri.image-ref"           // the image's reference, from CRI and the transfer service
	labelCRILayer  = "containerd.io/snapshot/cri.layer-digest"        // and the layer's digest
	labelRef       = "containerd.io/snapshot/remote/stargz.reference" // the same from stargz-snapshotter's clients
	labelLayer     = "containerd.io/snapshot/remote/stargz.digest"
)

// cidInRef matches a CIDv1 in base32 as a whole part of an image reference.
var cidInRef = regexp.MustCompile(`(?:^|/)(b[a-z2-7]{58,})(?:$|[:@/])`)

// blobDigest returns the digest of the layer that the labels describe, "" if they
// do not say it.
func blobDigest(labels map[string]string) string {
	return cmp.Or(labels[labelCRILayer], labels[labelLayer])
}

// source returns where the layer that the labels describe can be had, nil if
// they name no CID.
func (s *Snapshotter) source(ctx context.Context, labels map[string]string) (*record, error) {
	rec := &record{CID: labels[labelCID], TOCDigest: labels[labelTOCDigest]}
	if rec.CID != "" {
		return rec, nil
	}
	for u := range strings.SplitSeq(labels[labelURLs], ",") {
		if cid, ok := strings.CutPrefix(u, "ipfs://"); ok {
			rec.CID = cid
			return rec, nil
		}
	}
	for _, l := range [][2]string{{labelCRIRef, labelCRILayer}, {labelRef, labelLayer}} {
		m := cidInRef.FindStringSubmatch(labels[l[0]])
		if m == nil || labels[l[1]] == "" {
			continue
		}
		cid, toc, err := s.cfg.Finder.Find(ctx, m[1], labels[l[1]])
		if err != nil {
			return nil, fmt.Errorf("find layer %s of image %s: %w", labels[l[1]], m[1], err)
		}
		if rec.TOCDigest == "" {
			rec.TOCDigest = toc
		}
		rec.CID = cid
		return rec, nil
	}
	return nil, nil
}
