// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/cli-runtime/pkg/genericclioptions"

	"github.com/crd-ipam/crd-ipam/pkg/inspect"
)

// options are what all commands have in common.
type options struct {
	kube           *genericclioptions.ConfigFlags
	all            bool
	output         string
	poolsNamespace string

	in       io.Reader
	out, err io.Writer
}

func newRoot(in io.Reader, out, stderr io.Writer) *cobra.Command {
	o := &options{kube: genericclioptions.NewConfigFlags(true), in: in, out: out, err: stderr}
	root := &cobra.Command{
		Use:   "kubectl-ipam",
		Short: "Answer questions about the addresses of secondary networks",
		Long: `Answer questions about the addresses of secondary networks: who has an address, what is
full, what leaks, what is wrong, why a pod does not start, what an edit of a pool would do.

It works with your rights, and writes only in "reserve", "release" and "migrate".

Exit codes: 0 all is well, 1 there are findings, 2 there is no answer, 3 nothing was found
and a part could not be looked at.`,
		Annotations:   map[string]string{cobra.CommandDisplayNameAnnotation: "kubectl ipam"},
		Version:       version,
		SilenceErrors: true,
		SilenceUsage:  true,
		PersistentPreRunE: func(*cobra.Command, []string) error {
			switch o.output {
			case "", "json", "yaml":
				return nil
			}
			return fmt.Errorf("-o %s is not known: json or yaml", o.output)
		},
	}
	root.SetIn(in)
	root.SetOut(out)
	root.SetErr(stderr)
	flags := root.PersistentFlags()
	o.kube.AddFlags(flags)
	flags.Lookup("namespace").Usage = "Namespace: of the pod that is asked about (why, who), or of the pools. Pools are looked for in all namespaces without it"
	flags.BoolVarP(&o.all, "all-namespaces", "A", false, "Look for pools in all namespaces, and fail if you may not; without -A and -n that of the current context is used then")
	flags.StringVarP(&o.output, "output", "o", "", "Output format: json or yaml; columns without it")
	flags.StringVar(&o.poolsNamespace, "pools-namespace", "", "Namespace of the pools, if -n is the pod's")
	_ = root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"json", "yaml"}, cobra.ShellCompDirectiveNoFileComp)) // fails for unknown flags only
	root.AddCommand(o.show(), o.who(), o.free(), o.leaks(), o.check(), o.why(), o.plan(), o.reserve(), o.release(), o.migrate(), o.web())
	return root
}

// namespace returns that of -n or of the current context, and whether it was said.
func (o *options) namespace() (name string, said bool, err error) {
	name, _, err = o.kube.ToRawKubeConfigLoader().Namespace()
	return name, *o.kube.Namespace != "", err
}

// contextNamespace returns that of the current context, whatever -n says.
func (o *options) contextNamespace() (string, error) {
	config, err := o.kube.ToRawKubeConfigLoader().RawConfig()
	if err != nil {
		return "", err
	}
	if current := config.Contexts[cmp.Or(*o.kube.Context, config.CurrentContext)]; current != nil && current.Namespace != "" {
		return current.Namespace, nil
	}
	return metav1.NamespaceDefault, nil
}

// connect returns the cluster. ofPod says that -n is a pod's.
func (o *options) connect(ofPod bool) (*inspect.Cluster, error) {
	config, err := o.kube.ToRESTConfig()
	if err != nil {
		return nil, err
	}
	config.UserAgent = "kubectl-ipam/" + version
	c, err := inspect.Connect(config)
	if err != nil {
		return nil, err
	}
	name, said, err := o.namespace()
	if err != nil {
		return nil, err
	}
	c.Namespace = o.poolsNamespace
	if said && !ofPod && !o.all && c.Namespace == "" {
		c.Namespace = name
	}
	if ofPod && said {
		if name, err = o.contextNamespace(); err != nil {
			return nil, err
		}
	}
	if !o.all {
		c.Fallback = name
	}
	if isTerminal(o.err) {
		c.Progress = progress(o.err, time.Now())
	}
	return c, nil
}

// progress tells how far a long list is, on a line that the answer overwrites.
func progress(out io.Writer, start time.Time) func(string, int) {
	return func(what string, read int) {
		if time.Since(start) > time.Second {
			fmt.Fprintf(out, "\r\033[Kreading %s: %d\r", what, read)
		}
	}
}

func isTerminal(w any) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// say writes a sentence that is not a part of the answer.
func (o *options) say(format string, args ...any) {
	(&printer{out: o.err}).printf(format, args...)
}

// printer returns where columns go.
func (o *options) printer() *printer {
	if isTerminal(o.err) {
		fmt.Fprint(o.err, "\r\033[K")
	}
	return &printer{out: o.out, now: time.Now(), colour: isTerminal(o.out) && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"}
}
