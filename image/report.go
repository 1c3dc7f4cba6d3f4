package image

import (
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/ipfs-stargz/ipfs-stargz/image/progress"
)

// WriteText writes the report as aligned tables for people.
func (r Report) WriteText(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(tw, "root\t%s\n", r.CID)
	r.Target.writeRow(tw, "target")
	for _, m := range r.Manifests {
		name := m.Platform
		if name == "" {
			name = "(" + m.Kind + ")"
		}
		fmt.Fprintf(tw, "\n%s\n", name)
		if m.Digest != r.Target.Digest {
			m.writeRow(tw, "manifest")
		}
		if m.Config != nil {
			m.Config.writeRow(tw, "config")
		}
		// A table of its own, aligned by itself.
		if err := tw.Flush(); err != nil {
			return err
		}
		if len(m.Layers) == 0 {
			continue
		}
		fmt.Fprint(tw, "\nLAYER\tSIZE\tBLOCKS\tFORMAT\tLAZY\tCID\tDIGEST\tTOC DIGEST\n")
		for i, l := range m.Layers {
			lazy := "yes"
			if !l.Lazy {
				lazy = "no"
			}
			fmt.Fprintf(tw, "%d\t%s\t%d\t%s\t%s\t%s\t%s\t%s\n",
				i, progress.Bytes(l.Size), l.Blocks, dash(l.Format), lazy, dash(l.CID), l.Digest, dash(l.TOCDigest.String()))
		}
		if err := tw.Flush(); err != nil {
			return err
		}
		for i, l := range m.Layers {
			if !l.Lazy {
				fmt.Fprintf(tw, "layer %d is not lazy: %s\n", i, l.Why)
			}
		}
	}
	return tw.Flush()
}

func (b Blob) writeRow(w io.Writer, name string) {
	fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", name, dash(b.CID), b.Digest, progress.Bytes(b.Size), b.MediaType)
}

// dash stands for what is not known.
func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
