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
	"slices"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
)

func TestInUseNamesTheHolder(t *testing.T) {
	holder := &v1alpha1.IPAllocation{
		ObjectMeta: metav1.ObjectMeta{CreationTimestamp: metav1.NewTime(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC))},
		Spec: v1alpha1.IPAllocationSpec{
			PoolRef: v1alpha1.PoolReference{Kind: v1alpha1.PoolKindCIDRPool, Name: "rail1"}, NodeName: "worker", ContainerID: "c1", InterfaceName: "net1",
			PodRef: v1alpha1.PodReference{Namespace: "ml", Name: "train-0"},
		},
	}
	err := &InUseError{Address: netip.MustParseAddr("10.0.0.1"), Holder: holder}
	const want = `requested IP is already reserved in the pool "rail1", poolType "cidrpool": 10.0.0.1 is held by pod ml/train-0 on node worker (interface net1) since 2026-01-02T03:04:05Z`
	if err.Error() != want {
		t.Errorf("got  %s\nwant %s", err, want)
	}
}

// What is not held is said, too, and why it is not given.
func TestInUseSaysTheState(t *testing.T) {
	at := metav1.NewTime(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC))
	minute := &metav1.Duration{Duration: time.Minute}
	owner := &v1alpha1.AllocationOwner{Kind: "StatefulSet", Namespace: "ml", Name: "train"}
	pod := v1alpha1.PodReference{Namespace: "ml", Name: "train-0"}
	for _, tc := range []struct {
		spec v1alpha1.IPAllocationSpec
		want string
	}{
		{v1alpha1.IPAllocationSpec{NodeName: "worker", ContainerID: "c1", PodRef: pod, ReleaseCooldown: minute, ReleasedAt: &at},
			"released by pod ml/train-0 on node worker at 2026-01-02T03:04:05Z, and rests until 2026-01-02T03:05:05Z"},
		{v1alpha1.IPAllocationSpec{NodeName: "worker", ContainerID: "c1", PodRef: pod, Owner: owner, ReleasedAt: &at},
			"released at 2026-01-02T03:04:05Z, and kept for pod ml/train-0"},
		{v1alpha1.IPAllocationSpec{PodRef: pod}, "reserved for pod ml/train-0"},
		{v1alpha1.IPAllocationSpec{Owner: owner}, "reserved for StatefulSet ml/train"},
		{v1alpha1.IPAllocationSpec{}, "reserved for nobody"},
		{v1alpha1.IPAllocationSpec{NodeName: "worker", ContainerID: "c1", InterfaceName: "net1", PodRef: pod, ReleaseCooldown: minute, AddStartedAt: &metav1.MicroTime{Time: at.Time}},
			"held by pod ml/train-0 on node worker (interface net1) since 2026-01-02T03:04:05Z"},
	} {
		if got := Describe(&v1alpha1.IPAllocation{Spec: tc.spec}); got != tc.want {
			t.Errorf("got  %s\nwant %s", got, tc.want)
		}
	}
}

func TestTransient(t *testing.T) {
	gr := schema.GroupResource{Group: "nv-ipam.nvidia.com", Resource: "ipallocations"}
	dial := func(err error) error {
		return &url.Error{Op: "Post", URL: "https://127.0.0.1:6443", Err: &net.OpError{Op: "dial", Net: "tcp", Err: err}}
	}
	for _, tc := range []struct {
		name string
		err  error
		want bool
	}{
		{"connection refused", dial(syscall.ECONNREFUSED), true},
		{"no route", dial(syscall.EHOSTUNREACH), true},
		{"no such host", dial(&net.DNSError{Err: "no such host", Name: "api", IsNotFound: true}), true},
		{"deadline of a request", &url.Error{Op: "Get", URL: "x", Err: context.DeadlineExceeded}, true},
		{"too many requests", apierrors.NewTooManyRequests("slow down", 1), true},
		{"unavailable", apierrors.NewServiceUnavailable("starting"), true},
		{"internal error", apierrors.NewInternalError(errors.New("etcd has no leader")), true},
		{"server timeout", apierrors.NewServerTimeout(gr, "create", 1), true},
		{"answer cut off", fmt.Errorf("unexpected error when reading response body. Please retry. Original error: %w", io.ErrUnexpectedEOF), true},
		{"answer cut off, HTTP/2", errors.New("stream error when reading response body, may be caused by closed connection. Please retry. Original error: stream error: stream ID 1; INTERNAL_ERROR"), true},
		{"closed in the middle of the headers", &url.Error{Op: "Get", URL: "x", Err: errors.New(`net/http: HTTP/1.x transport connection broken: malformed MIME header: missing colon: "Content-Ty"`)}, true},
		{"closed before the answer", &url.Error{Op: "Get", URL: "x", Err: errors.New("http: server closed idle connection")}, true},
		{"a proxy's 404", apierrors.NewGenericServerResponse(404, "GET", gr, "x", "<html>", 0, true), true},
		{"certificate of the client", &url.Error{Op: "Get", URL: "x", Err: &net.OpError{Op: "remote error", Err: errors.New("tls: expired certificate")}}, false},
		{"already exists", apierrors.NewAlreadyExists(gr, "p.10.0.0.1"), false},
		{"forbidden", apierrors.NewForbidden(gr, "p.10.0.0.1", errors.New("no")), false},
		{"unauthorized", apierrors.NewUnauthorized("who are you"), false},
		{"invalid", apierrors.NewInvalid(schema.GroupKind{}, "x", nil), false},
		{"not found", apierrors.NewNotFound(gr, "x"), false},
		{"certificate", &url.Error{Op: "Get", URL: "x", Err: errors.New("x509: certificate signed by unknown authority")}, false},
		{"a list that began too long ago", apierrors.NewResourceExpired("too old"), true},
		{"a list that began too long ago, of an earlier server", &apierrors.StatusError{ErrStatus: metav1.Status{Code: http.StatusGone, Reason: metav1.StatusReasonGone}}, true},
		{"no list", fmt.Errorf("%w (its kind is %q)", errNoList, "Status"), true},
		{"another", fmt.Errorf("wrapped: %w", errors.New("anything")), false},
	} {
		if got := transient(tc.err); got != tc.want {
			t.Errorf("%s: transient = %v, want %v", tc.name, got, tc.want)
		}
	}
}

func TestRetry(t *testing.T) {
	t.Run("goes on after a transient error", func(t *testing.T) {
		n := 0
		err := Retry(t.Context(), func(context.Context) error {
			if n++; n < 3 {
				return apierrors.NewServiceUnavailable("starting")
			}
			return nil
		})
		if err != nil || n != 3 {
			t.Errorf("err %v after %d attempts", err, n)
		}
	})
	t.Run("stops at once at any other", func(t *testing.T) {
		n := 0
		err := Retry(t.Context(), func(context.Context) error { n++; return apierrors.NewUnauthorized("no") })
		if !apierrors.IsUnauthorized(err) || errors.Is(err, ErrUnavailable) || n != 1 {
			t.Errorf("err %v after %d attempts", err, n)
		}
	})
	t.Run("waits as long as the server asks for, and never twice the same time", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			seen := map[time.Duration]bool{}
			for range 20 {
				var tries []time.Time
				err := Retry(t.Context(), func(context.Context) error {
					if tries = append(tries, time.Now()); len(tries) < 2 {
						return apierrors.NewTooManyRequests("slow down", 7)
					}
					return nil
				})
				if err != nil {
					t.Fatal(err)
				}
				pause := tries[1].Sub(tries[0])
				if seen[pause] = true; pause < 7*time.Second || pause > 8*time.Second {
					t.Errorf("asked again after %s", pause)
				}
			}
			if len(seen) < 10 {
				t.Errorf("only %d different pauses: %v", len(seen), seen)
			}
		})
	})
	t.Run("does not wait for what its time does not allow", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			start, n := time.Now(), 0
			err := Retry(ctx, func(context.Context) error { n++; return apierrors.NewTooManyRequests("slow down", 30) })
			if !errors.Is(err, ErrUnavailable) || !apierrors.IsTooManyRequests(err) || n != 1 || time.Since(start) > 0 {
				t.Errorf("err %v after %d attempts and %s", err, n, time.Since(start))
			}
		})
	})
	t.Run("ends with its time", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			start, n := time.Now(), 0
			err := Retry(ctx, func(context.Context) error { n++; return apierrors.NewServiceUnavailable("starting") })
			if took := time.Since(start); !errors.Is(err, ErrUnavailable) || took < 15*time.Second || took > 20*time.Second || n < 8 || n > 25 {
				t.Errorf("err %v after %d attempts and %s", err, n, took)
			}
		})
	})
	t.Run("names the cause when time is over", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cause := apierrors.NewServiceUnavailable("starting")
		err := Retry(ctx, func(context.Context) error { cancel(); return cause })
		if !errors.Is(err, ErrUnavailable) || !errors.Is(err, error(cause)) {
			t.Errorf("err = %v", err)
		}
	})
}

// What the object says is refused for good, what a policy says is not.
func TestInvalidFields(t *testing.T) {
	kind := schema.GroupKind{Group: v1alpha1.GroupName, Kind: "IPAllocation"}
	invalid := apierrors.NewInvalid(kind, "a", field.ErrorList{
		field.TooLong(field.NewPath("spec", "containerID"), "", 256), field.Invalid(field.NewPath("spec", "podRef", "uid"), "a/b", "should match"),
	})
	policy := apierrors.NewForbidden(v1alpha1.Resource("ipallocations"), "a", errors.New("ValidatingAdmissionPolicy denied request"))
	policy.ErrStatus.Reason, policy.ErrStatus.Details.Causes = metav1.StatusReasonInvalid, []metav1.StatusCause{{Message: "denied"}}
	for _, tc := range []struct {
		err  error
		want []string
	}{
		{invalid, []string{"spec.containerID", "spec.podRef.uid"}},
		{fmt.Errorf("claiming: %w", invalid), []string{"spec.containerID", "spec.podRef.uid"}},
		{policy, nil},
		{apierrors.NewForbidden(v1alpha1.Resource("ipallocations"), "a", errors.New("no")), nil},
		{apierrors.NewBadRequest("no"), nil},
		{errors.New("no"), nil},
		{nil, nil},
	} {
		if got := InvalidFields(tc.err); !slices.Equal(got, tc.want) {
			t.Errorf("%v: %q, want %q", tc.err, got, tc.want)
		}
	}
}
