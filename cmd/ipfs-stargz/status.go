package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs/kubo"
)

// status is what a running daemon says of itself.
type status struct {
	Version   string   `json:"version"`
	PeerID    string   `json:"peer_id"`
	Addresses []string `json:"addresses"` // multiaddrs, with the peer id
	Peers     []string `json:"peers"`     // those connected, likewise
}

func statusCommand() *cobra.Command {
	var client clientFlags
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Tell who the daemon is and whom it is connected to",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return client.with(func(daemon *kubo.Client) error {
				s, err := askStatus(cmd.Context(), daemon)
				if err != nil {
					return err
				}
				return client.print(cmd, s, s.write)
			})
		},
	}
	client.add(cmd)
	client.addJSON(cmd)
	return cmd
}

func askStatus(ctx context.Context, daemon *kubo.Client) (s status, err error) {
	v, err := daemon.Version(ctx)
	if err != nil {
		return s, err
	}
	id, err := daemon.ID(ctx)
	if err != nil {
		return s, err
	}
	peers, err := daemon.Peers(ctx)
	if err != nil {
		return s, err
	}
	s = status{Version: v.Version, PeerID: id.ID, Addresses: id.Addresses, Peers: []string{}}
	for _, p := range peers {
		s.Peers = append(s.Peers, p.Addr+"/p2p/"+p.Peer)
	}
	return s, nil
}

func (s status) write(w io.Writer) error {
	fmt.Fprintf(w, "version    %s\npeer       %s\n", s.Version, s.PeerID)
	for _, a := range s.Addresses {
		fmt.Fprintf(w, "address    %s\n", a)
	}
	for _, p := range s.Peers {
		fmt.Fprintf(w, "connected  %s\n", p)
	}
	var err error
	if len(s.Peers) == 0 {
		_, err = fmt.Fprintln(w, "connected  to nobody (ipfs.peers in the configuration names nodes to connect to)")
	}
	return err
}
