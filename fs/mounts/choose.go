package mounts

import "fmt"

// Modes in which lazy layers are mounted.
const (
	ModeAuto   = "auto"   // ModeKernel where it is possible, else ModeFUSE
	ModeKernel = "kernel" // names by EROFS and overlayfs, FUSE for contents that are missing
	ModeFUSE   = "fuse"   // names by FUSE; contents as in ModeKernel, or by FUSE too
)

// Choice is the mode that runs, and why.
type Choice struct {
	Mode   string  `json:"mode"` // [ModeKernel] or [ModeFUSE]
	Why    string  `json:"why"`
	Kernel *Kernel `json:"kernel"`
}

// Choose says which mode runs when mode is asked for, after [Probe] found this.
// It is an error if no mode can run, or not the one that was asked for; the
// error names what is missing and what to do.
func Choose(mode string, k *Kernel, probeErr error) (Choice, error) {
	c := Choice{Mode: mode, Kernel: k}
	if k == nil {
		return c, probeErr
	}
	if k.Plain == "" {
		return c, fmt.Errorf("the kernel cannot mount overlays, without which there are no containers in any mode (load the module overlay, and keep root on ext4, xfs or btrfs): %s", k.Reasons(StepPlain))
	}
	switch {
	case mode != ModeAuto && mode != ModeKernel && mode != ModeFUSE:
		return c, fmt.Errorf("mode %q is none of %s, %s, %s", mode, ModeAuto, ModeKernel, ModeFUSE)
	case mode == ModeFUSE:
		c.Why = "the configuration asks for it" + k.contents()
	case probeErr == nil:
		c.Mode, c.Why = ModeKernel, k.String()
	case mode == ModeAuto:
		c.Mode, c.Why = ModeFUSE, probeErr.Error()+k.contents()
	default:
		return c, fmt.Errorf("mode = %q: %w (set fs.mode = %q to do without)", mode, probeErr, ModeAuto)
	}
	return c, nil
}

// contents says how the contents of files come in [ModeFUSE].
func (k *Kernel) contents() string {
	if k.Names != "" {
		return fmt.Sprintf("; overlayfs finds contents by itself (%s)", k.Names)
	}
	return "; contents come by FUSE too: " + k.Reasons(StepNames)
}
