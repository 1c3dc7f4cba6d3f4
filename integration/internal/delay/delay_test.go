package delay

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const oneWay = 25 * time.Millisecond

// pipes is a listener of connections that the bubble of a synctest knows.
type pipes struct {
	conns chan net.Conn
	done  chan struct{}
}

func newPipes() *pipes { return &pipes{conns: make(chan net.Conn), done: make(chan struct{})} }

func (p *pipes) dial(context.Context) (net.Conn, error) {
	near, far := net.Pipe()
	select {
	case p.conns <- far:
		return near, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error   { close(p.done); return nil }
func (p *pipes) Addr() net.Addr { return nil }

// connect gives both ends of a connection through a relay.
func connect(t *testing.T) (client, server net.Conn, r *Relay) {
	t.Helper()
	front, back := newPipes(), newPipes()
	r = Start(front, back.dial, oneWay)
	client, err := front.dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if server, err = back.Accept(); err != nil {
		t.Fatal(err)
	}
	return client, server, r
}

// TestRoundTrip takes twice the delay, to the nanosecond, and many messages in
// a row take no longer than one.
func TestRoundTrip(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server, r := connect(t)
		const messages = 1000
		var echo sync.WaitGroup
		echo.Go(func() {
			_, _ = io.Copy(server, server) // it ends with the relay
			server.Close()
		})
		begin := time.Now()
		go func() {
			for range messages {
				if _, err := client.Write([]byte("message")); err != nil {
					t.Error(err)
				}
			}
		}()
		got := make([]byte, messages*len("message"))
		if _, err := io.ReadFull(client, got); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begin); took != 2*oneWay {
			t.Errorf("the round trip took %v", took)
		}
		if !bytes.Equal(got, bytes.Repeat([]byte("message"), messages)) {
			t.Error("the bytes are others, or in another order")
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		echo.Wait()
		client.Close()
	})
}

// TestBounded takes no more than its limit from who sends to one that does not
// read.
func TestBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server, r := connect(t)
		sent := 0
		done := make(chan struct{})
		go func() {
			defer close(done)
			block := make([]byte, readSize)
			for {
				n, err := client.Write(block)
				sent += n
				if err != nil {
					return
				}
			}
		}()
		time.Sleep(time.Hour)
		synctest.Wait()
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		client.Close()
		server.Close()
		<-done
		if sent < maxBytes || sent > maxBytes+2*readSize {
			t.Errorf("the relay took %d bytes, its limit is %d", sent, maxBytes)
		}
	})
}

// TestRefused closes what it cannot relay.
func TestRefused(t *testing.T) {
	front := newPipes()
	r := Start(front, func(context.Context) (net.Conn, error) { return nil, errors.New("nobody there") }, oneWay)
	defer r.Close()
	client, err := front.dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("reading from a connection that cannot be relayed: %v", err)
	}
}

// TestTCP relays real connections: each side's end of stream arrives after all
// of its bytes, while the other side goes on.
func TestTCP(t *testing.T) {
	listen := func() net.Listener {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	back, front := listen(), listen()
	defer back.Close()
	var d net.Dialer
	r := Start(front, func(ctx context.Context) (net.Conn, error) {
		return d.DialContext(ctx, "tcp", back.Addr().String())
	}, time.Millisecond)
	defer r.Close()

	question, answer := bytes.Repeat([]byte("question"), 1<<18), bytes.Repeat([]byte("answer"), 1<<18)
	served := make(chan error, 1)
	go func() {
		c, err := back.Accept()
		if err != nil {
			served <- err
			return
		}
		got, err := io.ReadAll(c)
		if err == nil && !bytes.Equal(got, question) {
			err = errors.New("the question is another")
		}
		_, werr := c.Write(answer)
		served <- errors.Join(err, werr, c.Close())
	}()
	c, err := d.DialContext(t.Context(), "tcp", front.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write(question); err != nil {
		t.Fatal(err)
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(c)
	if err := errors.Join(err, <-served); err != nil || !bytes.Equal(got, answer) {
		t.Errorf("%d bytes of %d answered: %v", len(got), len(answer), err)
	}
}
