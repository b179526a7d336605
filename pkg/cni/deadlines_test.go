// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"testing"
	"time"

	"github.com/crd-ipam/crd-ipam/pkg/claim"
	"github.com/crd-ipam/crd-ipam/pkg/hint"
	"github.com/crd-ipam/crd-ipam/pkg/ledger"
)

// TestDeadlines compares the deadlines of claim/deadlines.go with each other and with
// those of the packages below it.
func TestDeadlines(t *testing.T) {
	longest := max(claim.AddTime, claim.DelTime, claim.CheckTime, claim.GCTime, claim.StatusTime) + claim.CleanupTime
	const kubelet = 4 * time.Minute // after which it gives up on a sandbox
	for _, tc := range []struct {
		why           string
		less, greater time.Duration
	}{
		{"a call ends before the kubelet gives up", longest, kubelet},
		{"an entry that is old enough belongs to no running call", longest, hint.InFlight},
		{"an earlier sandbox is taken over only after its ADD has ended", claim.AddTime + claim.CleanupTime, claim.SandboxAge},
		{"a request that hangs can be repeated within an ADD", 2 * ledger.RequestTime, claim.AddTime},
		{"a failed ADD has time to list and to release", ledger.RequestTime, claim.CleanupTime},
		{"a DEL has time to note the release after a list that hangs", claim.CleanupTime, claim.DelTime},
	} {
		if tc.less >= tc.greater {
			t.Errorf("%s: %s is not less than %s", tc.why, tc.less, tc.greater)
		}
	}
}
