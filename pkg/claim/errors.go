// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package claim

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	utilnet "k8s.io/apimachinery/pkg/util/net"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/pool"
)

// What goes wrong, as a caller has to tell it apart. Besides these there are
// InUseError, and pool.RequestError for a request that can never be met. Anything
// else is the API server's own refusal, passed on as it is.
var (
	// ErrPoolNotFound: there is no such pool, or it has no block for this node.
	ErrPoolNotFound = errors.New("not found")
	// ErrExhausted: every address of this node's block is held. The API server
	// said so, not the hint.
	ErrExhausted = errors.New("no free addresses in the pool")
	// ErrUnavailable: the API server did not answer before the deadline, or
	// answered that it cannot serve now.
	ErrUnavailable = errors.New("API server unavailable")
	// ErrNotHeld: the attachment does not hold an address of the pool.
	ErrNotHeld = errors.New("not found")

	// errUnanswered: a create was sent, and whether it was carried out is not
	// known.
	errUnanswered = errors.New("a create may have been carried out")
	// errMayCome: a create that was never answered has made nothing, so far.
	errMayCome = errors.New("a create may still be carried out")
)

// InUseError says that somebody else holds an address.
type InUseError struct {
	// Address that was asked for.
	Address netip.Addr
	// Holder is the allocation that stands in the way.
	Holder *v1alpha1.IPAllocation
}

// Error names the holder, so that whoever reads the pod's event knows whom to
// ask.
func (e *InUseError) Error() string {
	s, pod := e.Holder.Spec, e.Holder.Spec.PodRef
	return fmt.Sprintf("requested IP is already reserved in the pool %q, poolType %q: %s is held by pod %s/%s on node %s (interface %s) since %s",
		s.PoolRef.Name, pool.Type(s.PoolRef.Kind), e.Address, pod.Namespace, pod.Name, s.NodeName, s.InterfaceName,
		e.Holder.CreationTimestamp.UTC().Format("2006-01-02T15:04:05Z"))
}

func exhausted(ref v1alpha1.PoolReference) error {
	return fmt.Errorf("%w %q, poolType %q", ErrExhausted, ref.Name, pool.Type(ref.Kind))
}

func poolNotFound(ref v1alpha1.PoolReference, why string) error {
	return fmt.Errorf("configuration for pool %q, poolType %q %w: %s", ref.Name, pool.Type(ref.Kind), ErrPoolNotFound, why)
}

func notHeld(ref v1alpha1.PoolReference) error {
	return fmt.Errorf("reservation for pool %q, poolType %q %w", ref.Name, pool.Type(ref.Kind), ErrNotHeld)
}

// notFound reports whether the API server says that there is no such object. A
// proxy's 404 page, or that of a server without the CRDs, says nothing about it.
func notFound(err error) bool {
	return apierrors.IsNotFound(err) && !apierrors.IsUnexpectedServerError(err)
}

// refused reports whether the API server says that it has not carried out a
// request. Any other error leaves that open.
func refused(err error) bool {
	var answer apierrors.APIStatus
	if !errors.As(err, &answer) || apierrors.IsUnexpectedServerError(err) || errors.Is(err, ErrUnavailable) {
		return false
	}
	code := answer.Status().Code
	return code >= http.StatusBadRequest && code < http.StatusInternalServerError
}

// transient reports whether the same request may succeed a little later: the
// server is away, overloaded or restarting, or something else answers in its
// place. What it refused for good, and a collision, are not.
func transient(err error) bool {
	switch {
	case apierrors.IsNotFound(err):
		return !notFound(err)
	case apierrors.IsServerTimeout(err), apierrors.IsTimeout(err), apierrors.IsTooManyRequests(err),
		apierrors.IsServiceUnavailable(err), apierrors.IsInternalError(err), apierrors.IsResourceExpired(err):
		return true
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return true
	case utilnet.IsConnectionRefused(err), utilnet.IsConnectionReset(err), utilnet.IsProbableEOF(err), utilnet.IsHTTP2ConnectionLost(err),
		errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), isStreamError(err):
		return true
	}
	// Certificate errors come as url.Error too, but do not heal by themselves.
	var alert *net.OpError
	if errors.As(err, &alert) && alert.Op == "remote error" { // the other side's about ours
		return false
	}
	var netErr net.Error
	var urlErr *url.Error
	if errors.As(err, &urlErr) {
		err = urlErr.Err
	}
	return errors.As(err, &netErr)
}

// isStreamError reports whether the server broke off an HTTP/2 answer. Two
// packages have the type, and neither is worth linking for it.
func isStreamError(err error) bool {
	return strings.Contains(err.Error(), "stream error: stream ID")
}
