// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
)

// heldPage bounds what one answer of a list of all names holds in memory: an item is some
// 600 bytes.
const heldPage = 2000

// HeldInWindow returns the addresses of a domain that are held in the window of an address
// (v1alpha1.WindowOf). It makes one request, which the API server answers from its watch
// cache: the answer may be some milliseconds old, and lacks allocations without the label:
// an administrator's, and those that were claimed while the pool, or one that it has replaced, had blocks only.
func (l *Ledger) HeldInWindow(ctx context.Context, domain string, addr netip.Addr) (map[netip.Addr]bool, error) {
	held := map[netip.Addr]bool{}
	selector := labels.Set{v1alpha1.LabelWindow: v1alpha1.WindowLabel(addr)}.String()
	err := Retry(ctx, func(context.Context) error { // the list has all the time of ctx
		clear(held)
		_, err := l.names(ctx, domain, held, map[string]string{"labelSelector": selector, "resourceVersion": "0"})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("listing who holds addresses in %s: %w", v1alpha1.WindowOf(addr), err)
	}
	return held, nil
}

// Held returns the addresses of a domain that are held, as etcd has them when it is called. The
// API server looks at every allocation of the namespace for it. If windows are named
// (v1alpha1.WindowLabel), it sends only what is in them, and that lacks allocations without the
// label, as in HeldInWindow; otherwise it sends the names of all.
func (l *Ledger) Held(ctx context.Context, domain string, windows ...string) (map[netip.Addr]bool, error) {
	held := map[netip.Addr]bool{}
	err := Retry(ctx, func(context.Context) error { // the list has all the time of ctx
		clear(held)
		page := map[string]string{"limit": strconv.Itoa(heldPage)}
		if len(windows) > 0 {
			page["labelSelector"] = v1alpha1.LabelWindow + " in (" + strings.Join(windows, ",") + ")"
		}
		for {
			next, err := l.names(ctx, domain, held, page)
			if err != nil || next == "" {
				return err
			}
			page["continue"] = next
		}
	})
	if err != nil {
		return nil, fmt.Errorf("listing the addresses of domain %s that are held: %w", domain, err)
	}
	return held, nil
}

// names lists allocations, of which the API server sends the metadata only, and enters
// those of the domain. It returns where the list goes on.
func (l *Ledger) names(ctx context.Context, domain string, held map[netip.Addr]bool, params map[string]string) (next string, err error) {
	// No time of its own, as lists of the typed client have none: an overloaded API server would
	// begin the same work again and again.
	request := l.Client.RESTClient().Get().Timeout(0).Namespace(l.Namespace).Resource("ipallocations")
	for name, value := range params {
		request = request.Param(name, value)
	}
	var list struct {
		Kind     string          `json:"kind"`
		Metadata metav1.ListMeta `json:"metadata"`
		Items    []struct {
			Metadata struct {
				Name string `json:"name"`
			} `json:"metadata"`
		} `json:"items"`
	}
	err = readAs(ctx, request, metadataOnlyList, &list)
	var syntax *json.SyntaxError
	switch {
	case errors.As(err, &syntax):
		return "", fmt.Errorf("%w (%w)", errNoList, err)
	case err != nil:
		return "", err
	case !strings.HasSuffix(list.Kind, "List"): // it would count as an empty one
		return "", fmt.Errorf("%w (its kind is %q)", errNoList, list.Kind)
	}
	for _, item := range list.Items {
		if of, addr, err := v1alpha1.ParseAllocationName(item.Metadata.Name); err == nil && of == domain {
			held[addr] = true
		}
	}
	return list.Metadata.Continue, nil
}

// errNoList: a list was answered with something else. It may be one when it is asked for again.
var errNoList = errors.New("the answer is not a list: what answered is no API server, or its answer was cut")

// metadataOnlyList is metadataOnly for a list.
const metadataOnlyList = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
