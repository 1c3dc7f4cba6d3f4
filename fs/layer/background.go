package layer

import "context"

type backgroundKey struct{}

// WithBackground marks what is read of a [Source] with the returned context as
// wanted by nobody yet: it may go behind all that somebody waits for. raised is
// closed when somebody comes to wait for it all the same.
func WithBackground(ctx context.Context, raised <-chan struct{}) context.Context {
	return context.WithValue(ctx, backgroundKey{}, raised)
}

// Background reports whether a context was marked by [WithBackground], and if so
// returns what was passed to it.
func Background(ctx context.Context) (raised <-chan struct{}, ok bool) {
	raised, ok = ctx.Value(backgroundKey{}).(<-chan struct{})
	return raised, ok
}
