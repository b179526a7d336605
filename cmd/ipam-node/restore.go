// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"time"

	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/rest"

	clientv1alpha1 "github.com/crd-ipam/crd-ipam/generated/clientset/versioned/typed/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/claim"
	"github.com/crd-ipam/crd-ipam/pkg/hint"
	"github.com/crd-ipam/crd-ipam/pkg/ledger"
)

// maxRecordInterval is less than claim.LossGrace, with the jitter and a look's own time.
const maxRecordInterval = 2 * time.Minute

// lookTime is what one look may take. A node may have some hundred lost allocations.
const lookTime = 30 * time.Second

// keepRecord looks until ctx ends whether the API server still has what this node holds.
func (i *installer) keepRecord(ctx context.Context) {
	if i.nodeName == "" || i.recordInterval == 0 {
		return
	}
	for {
		if err := i.look(ctx); err != nil && ctx.Err() == nil {
			i.log.Warn("whether allocations of this node were lost is not known", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait.Jitter(i.recordInterval, 0.2)):
		}
	}
}

// look writes again what this node holds and the API server has lost.
func (i *installer) look(ctx context.Context) error {
	config, err := clientConfig(i.kubeconfig)
	if err != nil {
		return err
	}
	c, err := i.claimer(config)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	return c.Look(ctx)
}

func (i *installer) claimer(config *rest.Config) (*claim.Claimer, error) {
	client, err := clientv1alpha1.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	site, err := ledger.SiteOf(config, i.nodeName)
	if err != nil {
		return nil, err
	}
	return &claim.Claimer{
		Ledger: ledger.Ledger{Client: client, Namespace: i.namespace, Node: i.nodeName},
		Hint:   hint.Open(i.dataDir, site, i.namespace, i.log), Log: i.log,
	}, nil
}
