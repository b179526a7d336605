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
	"syscall"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/apimachinery/pkg/util/wait"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/pool"
)

// Errors that a caller has to tell apart, besides InUseError. Any other error has that of the
// API server in its chain.
var (
	// ErrUnavailable: the API server did not answer before the deadline, or
	// answered that it cannot serve now.
	ErrUnavailable = errors.New("API server unavailable")
	// ErrUnanswered: a create, or the patch of a takeover, was sent and not answered. The API
	// server may have carried it out, or may still do so.
	ErrUnanswered = errors.New("a create may have been carried out")
)

// InUseError says that the address has an allocation, and it is not this attachment's: another
// one holds it, or it is released, or reserved (the states at v1alpha1.IPAllocation). Whether it
// yields is asked by pkg/claim (yields).
type InUseError struct {
	// Address that was asked for.
	Address netip.Addr
	// Holder is that allocation, in whichever state. It is nil if nobody has read it
	// (CreateIfFree), or if it is gone meanwhile (TakeOver).
	Holder *v1alpha1.IPAllocation
}

// Error names the holder: whoever reads the pod's event knows whom to ask.
func (e *InUseError) Error() string {
	if e.Holder == nil {
		return fmt.Sprintf("another attachment holds %s", e.Address)
	}
	ref := e.Holder.Spec.PoolRef
	return fmt.Sprintf("requested IP is already reserved in the pool %q, poolType %q: %s is %s", ref.Name, pool.Type(ref.Kind), e.Address, Describe(e.Holder))
}

// Describe says who holds an allocation and since when, or for whom it is kept, or until when it
// rests.
func Describe(a *v1alpha1.IPAllocation) string {
	s := a.Spec
	const day = "2006-01-02T15:04:05Z"
	switch until := s.ReusableAt(); {
	case s.ContainerID == "":
		return fmt.Sprintf("reserved for %s", keeper(&s))
	case s.Released() && s.Owner != nil:
		return fmt.Sprintf("released at %s, and kept for %s", s.ReleasedAt.UTC().Format(day), keeper(&s))
	case s.Released():
		return fmt.Sprintf("released by pod %s/%s on node %s at %s, and rests until %s", s.PodRef.Namespace, s.PodRef.Name, s.NodeName,
			s.ReleasedAt.UTC().Format(day), until.UTC().Format(day))
	}
	text := fmt.Sprintf("held by pod %s/%s on node %s (interface %s) since %s", s.PodRef.Namespace, s.PodRef.Name, s.NodeName, s.InterfaceName,
		Since(a).UTC().Format(day))
	if next := s.Next; next != nil {
		text += fmt.Sprintf(", and moves to pod %s/%s on node %s", next.PodRef.Namespace, next.PodRef.Name, next.NodeName)
	}
	return text
}

// Since returns when the holder has claimed the address: a takeover leaves the creation
// time as it is.
func Since(a *v1alpha1.IPAllocation) time.Time {
	if started := a.Spec.AddStartedAt; a.Spec.IsKept() && started != nil {
		return started.Time
	}
	return a.CreationTimestamp.Time
}

// keeper says for whom an address is kept.
func keeper(s *v1alpha1.IPAllocationSpec) string {
	switch o := s.Owner; {
	case o.IsIPAMClaim(): // of the pods that name it, the last one may be gone
		return fmt.Sprintf("%s %s/%s", o.Kind, o.Namespace, o.Name)
	case s.PodRef.Name != "":
		return fmt.Sprintf("pod %s/%s", s.PodRef.Namespace, s.PodRef.Name)
	case o != nil:
		return fmt.Sprintf("%s %s/%s", o.Kind, o.Namespace, o.Name)
	}
	return "nobody"
}

// IsInUse reports whether an error has an InUseError in its chain.
func IsInUse(err error) bool {
	var inUse *InUseError
	return errors.As(err, &inUse)
}

// NotFound reports whether the API server says that there is no such object. A 404 of
// a proxy, or of a server without the CRDs, proves nothing about the object.
func NotFound(err error) bool {
	return apierrors.IsNotFound(err) && !apierrors.IsUnexpectedServerError(err)
}

// Existing turns NotFound into nil without an error: nothing else proves that something is
// gone.
func Existing[T any](obj *T, err error) (*T, error) {
	if NotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return obj, nil
}

// Refused reports whether the API server says that it has not carried out the request
// and will not. With any other error it may have.
func Refused(err error) bool {
	var answer apierrors.APIStatus
	if !errors.As(err, &answer) || apierrors.IsUnexpectedServerError(err) || errors.Is(err, ErrUnavailable) {
		return false
	}
	code := answer.Status().Code
	return code >= http.StatusBadRequest && code < http.StatusInternalServerError
}

// InvalidFields returns the fields for which the API server refuses an object: it will refuse them
// from anybody, at any time. It returns none for any other error. A policy may give the same
// reason, but names no field, and may be changed.
func InvalidFields(err error) (fields []string) {
	var answer apierrors.APIStatus
	if !apierrors.IsInvalid(err) || !errors.As(err, &answer) || answer.Status().Details == nil {
		return nil
	}
	for _, cause := range answer.Status().Details.Causes {
		if cause.Field == "" {
			return nil
		}
		fields = append(fields, cause.Field)
	}
	return fields
}

// transient reports whether the same request may succeed a little later: the
// server is away, overloaded or restarting, or something else answers in its
// place. A refusal and a collision are not transient.
func transient(err error) bool {
	switch {
	case apierrors.IsNotFound(err):
		return !NotFound(err)
	case apierrors.IsServerTimeout(err), apierrors.IsTimeout(err), apierrors.IsTooManyRequests(err),
		apierrors.IsServiceUnavailable(err), apierrors.IsInternalError(err):
		return true
	case apierrors.IsResourceExpired(err), apierrors.IsGone(err): // a list that began too long ago: it begins again
		return true
	case errors.Is(err, errNoList):
		return true
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return true
	case utilnet.IsConnectionRefused(err), Closed(err), utilnet.IsHTTP2ConnectionLost(err), brokenOff(err):
		return true
	}
	// A certificate error is a url.Error, too, but repeating the request does not help.
	var alert *net.OpError
	if errors.As(err, &alert) && alert.Op == "remote error" { // the server rejects our certificate
		return false
	}
	var netErr net.Error
	var urlErr *url.Error
	if errors.As(err, &urlErr) {
		err = urlErr.Err
	}
	return errors.As(err, &netErr)
}

// tryAgain is an error that Retry repeats.
func tryAgain(verb string) error {
	return apierrors.NewServerTimeout(v1alpha1.Resource("ipallocations"), verb, 0)
}

// Closed reports whether the server has closed the connection instead of answering.
func Closed(err error) bool {
	return utilnet.IsConnectionReset(err) || utilnet.IsProbableEOF(err) ||
		errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.EPIPE) ||
		strings.Contains(err.Error(), "http: server closed idle connection") // net/http has no name for it
}

// brokenOff reports whether the server broke off its answer: one of HTTP/2, whose error is a type of
// two packages that the plugin would have to link only for this, or one of HTTP/1.1 in the middle of
// its headers, for which net/http has no name.
func brokenOff(err error) bool {
	return strings.Contains(err.Error(), "stream error: stream ID") ||
		strings.Contains(err.Error(), "transport connection broken: malformed ")
}

// Retry calls f, with a context for one request, until it succeeds or fails for good (its error
// is not transient, such as a refusal or a collision), or ctx leaves no time for another try. Then
// the error is ErrUnavailable with the last cause that is known. Between two tries it waits at
// least as long as the API server asks for.
func Retry(ctx context.Context, f func(context.Context) error) error {
	backoff := wait.Backoff{Duration: 50 * time.Millisecond, Factor: 2, Jitter: 0.5, Steps: 8, Cap: 2 * time.Second}
	var answered error
	for {
		request, cancel := context.WithTimeout(ctx, RequestTime)
		err := f(request)
		cancel()
		if err == nil || !transient(err) {
			return err
		}
		// An earlier answer of the API server says more than the deadline.
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
