// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"errors"
	"fmt"
	"os/exec"
	"runtime"

	"github.com/spf13/cobra"

	"github.com/crd-ipam/crd-ipam/pkg/web"
)

func (o *options) web() *cobra.Command {
	address, port, open := "127.0.0.1", uint16(0), false
	cmd := &cobra.Command{
		Use: "web", Short: "Show pools, maps of them, and what leaks, on a page for this machine's browser", Args: cobra.NoArgs,
		Long: `Show pools, maps of them, and what leaks, on a page for this machine's browser. The page
follows the cluster until the command ends. It shows what you may see, listens on loopback
only, and answers whoever has the token in the URL that this prints. It changes nothing.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.output != "" {
				return errors.New("-o is not for web: it prints the URL")
			}
			listener, err := web.Listen(address, port)
			if err != nil {
				return err
			}
			defer func() { _ = listener.Close() }()
			c, err := o.connect(false)
			if err != nil {
				return err
			}
			record, err := c.Follow(cmd.Context())
			if err != nil {
				return err
			}
			o.note(c)
			server, err := web.New(record, listener.Addr(), o.cluster())
			if err != nil {
				return err
			}
			fmt.Fprintln(o.out, server.URL())
			fmt.Fprintln(o.err, "Open this URL in a browser on this machine. Ctrl-C ends it.")
			if open {
				if err := browse(server.URL()); err != nil {
					fmt.Fprintln(o.err, "no browser was opened:", err)
				}
			}
			return server.Serve(cmd.Context(), listener)
		},
	}
	cmd.Flags().StringVar(&address, "address", address, "Address to listen on: 127.0.0.1 or ::1")
	cmd.Flags().Uint16Var(&port, "port", port, "Port to listen on; 0 is any that is free")
	cmd.Flags().BoolVar(&open, "open", open, "Open the page in the browser. Other users of this machine may see the token among the processes")
	return cmd
}

// cluster names the cluster as the kubeconfig does; "" where there is none.
func (o *options) cluster() string {
	config, err := o.kube.ToRawKubeConfigLoader().RawConfig()
	if err != nil {
		return ""
	}
	return cmp.Or(*o.kube.Context, config.CurrentContext)
}

// browse opens a URL in the user's browser.
func browse(url string) error {
	program := "xdg-open"
	if runtime.GOOS == "darwin" {
		program = "open"
	}
	return exec.Command(program, url).Run()
}
