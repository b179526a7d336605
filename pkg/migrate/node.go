// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package migrate

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	clientv1alpha1 "github.com/crd-ipam/crd-ipam/generated/clientset/versioned/typed/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/claim"
	"github.com/crd-ipam/crd-ipam/pkg/hint"
	"github.com/crd-ipam/crd-ipam/pkg/ledger"
)

// What --migrate may be.
const (
	modeAuto  = "auto"
	modeForce = "force"
	modeNever = "never"
	modeOnly  = "only"
)

// Options are the flags of a migration.
type Options struct {
	// DryRun asks for Node.Plan.
	DryRun bool

	store  string
	mode   string
	settle time.Duration
}

// AddFlags adds the flags; --store-file is nv-ipam's.
func (o *Options) AddFlags(fs *flag.FlagSet) {
	fs.StringVar(&o.store, "store-file", "/var/lib/cni/nv-ipam/store", "nv-ipam's node store, which is migrated and never changed")
	fs.StringVar(&o.mode, "migrate", modeAuto, "auto: what has not been migrated yet; force: also where it is done, so that conflicts are tried again; only: claim what the store has and exit, nv-ipam goes on serving; never")
	fs.BoolVar(&o.DryRun, "migrate-dry-run", false, "print what the migration would do, change nothing, and exit")
	fs.DurationVar(&o.settle, "migrate-settle", 0, "for how long nv-ipam's store must not have changed after the plugin was replaced; 0 is --cni-daemon-call-timeout and a second")
}

// Check returns an error that names the flag and the value that cannot be. callTimeout is
// that of nv-ipam's plugin in seconds: the default of --migrate-settle follows from it.
func (o *Options) Check(callTimeout int) error {
	if !slices.Contains([]string{modeAuto, modeForce, modeNever, modeOnly}, o.mode) {
		return fmt.Errorf("--migrate must be auto, force, only or never, not %q", o.mode)
	}
	if o.settle < 0 {
		return fmt.Errorf("--migrate-settle must not be negative: %v", o.settle)
	}
	if o.settle == 0 {
		o.settle = time.Duration(callTimeout+1) * time.Second
	}
	return nil
}

// Only reports whether Node.Claim is asked for: the migration without the switch.
func (o *Options) Only() bool { return o.mode == modeOnly }

// Node is the migration of one node.
type Node struct {
	*Options
	// Namespace of the pools, Name of the Node object, DataDir of the plugin.
	Namespace, Name, DataDir string
	// Connect is called if there is something to migrate.
	Connect func() (*rest.Config, error)
	// Foreign reports whether the plugin on the host is not the one that was installed.
	Foreign func() (bool, error)
	Log     *slog.Logger
}

// Around installs the plugin, and takes over what nv-ipam has given if that has not been
// done yet.
func (n *Node) Around(ctx context.Context, install func(context.Context) error) error {
	m, err := n.due()
	if err != nil {
		return err
	}
	if m == nil {
		// A migration that was killed at its very end, or that nobody wants to continue,
		// must not keep addresses from pods.
		return errors.Join(hint.Open(n.DataDir, "", n.Namespace, n.Log).ResumeADDs(), install(ctx))
	}
	return n.run(ctx, m, install)
}

// due returns the migration that has to be done around the switch, or nil. It is
// also due where somebody has put nv-ipam's plugin back: that may be giving
// addresses this very moment.
func (n *Node) due() (*migrator, error) {
	if n.mode == modeNever || !n.hasStore() {
		return nil, nil
	}
	m, err := n.migrator()
	if err != nil {
		return nil, err
	}
	needed, err := m.needed()
	if err != nil {
		return nil, err
	}
	foreign, err := n.Foreign()
	if err != nil {
		return nil, err
	}
	if !needed && !foreign {
		return nil, n.repeatUnsolved()
	}
	return m, nil
}

func (n *Node) run(ctx context.Context, m *migrator, install func(context.Context) error) error {
	n.Log.Info("migrating from nv-ipam", "store", n.store, "node", n.Name, "namespace", n.Namespace)
	journal, err := m.run(ctx, install)
	if journal != nil {
		n.Log.Info("migration: "+journal.String(), "finished", err == nil, "journal", n.store+journalSuffix)
	}
	if err != nil {
		return fmt.Errorf("migrating from nv-ipam: %w", err)
	}
	if n.mode == modeForce {
		n.mode = modeAuto // that was it
	}
	return nil
}

// repeatUnsolved says again what a person has to solve.
func (n *Node) repeatUnsolved() error {
	journal, err := readJournal(n.store)
	if err != nil || journal == nil {
		return err
	}
	for _, o := range journal.unsolved() {
		n.Log.Error("when this node was migrated: "+unsolvedText[o.Result]+"; --migrate=force tries again",
			"result", string(o.Result), "address", o.Address, "pool", o.Pool.Name, "pod", o.Pod.Namespace+"/"+o.Pod.Name, "detail", o.Detail)
	}
	return nil
}

// Claim is the migration without the switch.
func (n *Node) Claim(ctx context.Context) error {
	if !n.hasStore() {
		n.Log.Info("nothing to migrate: there is no store", "store", n.store)
		return nil
	}
	m, err := n.migrator()
	if err != nil {
		return err
	}
	journal, err := m.claimAll(ctx)
	if journal != nil {
		n.Log.Info("migration without a switch: " + journal.String())
	}
	return err
}

// Plan prints what the migration would do, and changes nothing.
func (n *Node) Plan(ctx context.Context, w io.Writer) error {
	if !n.hasStore() {
		fmt.Fprintf(w, "nothing to migrate: there is no %s\n", n.store)
		return nil
	}
	m, err := n.migrator()
	if err != nil {
		return err
	}
	plan, err := m.planAll(ctx)
	if err != nil {
		return err
	}
	if err := plan.writeTable(w); err != nil {
		return err
	}
	fmt.Fprintln(w, "would be:", plan)
	return nil
}

func (n *Node) migrator() (*migrator, error) {
	if n.Name == "" {
		return nil, errors.New("there is a store of nv-ipam to migrate, which needs --node-name")
	}
	config, err := n.Connect()
	if err != nil {
		return nil, err
	}
	client, err := clientv1alpha1.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	kube, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	reporter := &reporter{Pools: client, Events: kube.CoreV1().Events(n.Namespace), Namespace: n.Namespace, Node: n.Name}
	site, err := ledger.SiteOf(config, n.Name)
	if err != nil {
		return nil, err
	}
	return &migrator{
		Claimer: &claim.Claimer{
			Ledger: ledger.Ledger{Client: client, Namespace: n.Namespace, Node: n.Name},
			Hint:   hint.Open(n.DataDir, site, n.Namespace, n.Log), Log: n.Log,
		},
		StoreFile: n.store,
		Force:     n.mode == modeForce,
		Settle:    n.settle,
		Report:    reporter.unsolved,
	}, nil
}

func (n *Node) hasStore() bool {
	_, err := os.Stat(n.store)
	return !errors.Is(err, fs.ErrNotExist)
}
