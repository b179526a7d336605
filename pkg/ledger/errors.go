// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package ledger

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
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/apimachinery/pkg/util/wait"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
)

// What goes wrong, as a caller has to tell it apart; and InUseError. Anything else
// is the API server's own refusal, passed on as it is.
var (
	// ErrUnavailable: the API server did not answer before the deadline, or
	// answered that it cannot serve now.
	ErrUnavailable = errors.New("API server unavailable")
	// ErrUnanswered: a create was sent, and whether it was carried out, or will be,
	// is not known.
	ErrUnanswered = errors.New("a create may have been carried out")
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
		s.PoolRef.Name, strings.ToLower(string(s.PoolRef.Kind)), e.Address, pod.Namespace, pod.Name, s.NodeName, s.InterfaceName,
		e.Holder.CreationTimestamp.UTC().Format("2006-01-02T15:04:05Z"))
}

// IsInUse reports whether somebody else holds the address.
func IsInUse(err error) bool {
	var inUse *InUseError
	return errors.As(err, &inUse)
}

// NotFound reports whether the API server says that there is no such object. A
// proxy's 404 page, or that of a server without the CRDs, says nothing about it.
func NotFound(err error) bool {
	return apierrors.IsNotFound(err) && !apierrors.IsUnexpectedServerError(err)
}

// Refused reports whether the API server says that it has not carried out a
// request. Any other error leaves that open.
func Refused(err error) bool {
	var answer apierrors.APIStatus
	if !errors.As(err, &answer) || apierrors.IsUnexpectedServerError(err) || errors.Is(err, ErrUnavailable) {
		return false
	}
	code := answer.Status().Code
	return code >= http.StatusBadRequest && code < http.StatusInternalServerError
}

// transient reports whether the same request may succeed a little later: the
// server is away, overloaded or restarting, or something else answers in its
// place. What it Refused for good, and a collision, are not.
func transient(err error) bool {
	switch {
	case apierrors.IsNotFound(err):
		return !NotFound(err)
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

// Retry calls f, with a context for one request, until it succeeds, fails for good,
// or ctx would end before the next try; then the error is ErrUnavailable with the
// last cause that was told. It waits at least as long as the API server asks for.
func Retry(ctx context.Context, f func(context.Context) error) error {
	return retry(ctx, RequestTime, f)
}

// retry is Retry with another bound for one try, 0 for none but ctx.
func retry(ctx context.Context, bound time.Duration, f func(context.Context) error) error {
	backoff := wait.Backoff{Duration: 50 * time.Millisecond, Factor: 2, Jitter: 0.5, Steps: 8, Cap: 2 * time.Second}
	var answered error
	for {
		err := try(ctx, bound, f)
		if err == nil || !transient(err) {
			return err
		}
		// What the API server said tells more than that the time was over at last.
		if answer := apierrors.APIStatus(nil); errors.As(err, &answer) {
			answered = err
		} else if answered != nil && errors.Is(err, context.DeadlineExceeded) {
			err = answered
		}
		pause := backoff.Step()
		if seconds, ok := apierrors.SuggestsClientDelay(err); ok {
			pause += time.Duration(seconds) * time.Second
		}
		if end, ok := ctx.Deadline(); ok && time.Until(end) < pause {
			return fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ErrUnavailable, err)
		case <-time.After(pause):
		}
	}
}

func try(ctx context.Context, bound time.Duration, f func(context.Context) error) error {
	if bound > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, bound)
		defer cancel()
	}
	return f(ctx)
}
