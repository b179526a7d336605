// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package claim

import (
	"testing"
	"time"

	"github.com/crd-ipam/crd-ipam/pkg/hint"
	"github.com/crd-ipam/crd-ipam/pkg/ledger"
)

// TestDeadlines compares the deadlines of deadlines.go with each other and with
// those of the packages below it.
func TestDeadlines(t *testing.T) {
	longest := max(AddTime, DelTime, CheckTime, GCTime, StatusTime) + CleanupTime
	const kubelet = 4 * time.Minute // after which it gives up on a sandbox
	for _, tc := range []struct {
		why           string
		less, greater time.Duration
	}{
		{"a call ends before the kubelet gives up", longest, kubelet},
		{"an entry that is old enough belongs to no running call", longest, hint.InFlight},
		{"an earlier sandbox is taken over only after its ADD has ended", AddTime + CleanupTime, sandboxAge},
		{"a request that hangs can be repeated within an ADD", 2 * ledger.RequestTime, AddTime},
		{"a failed ADD has time to release what it has claimed", releaseTime, rollBackTime},
		{"a call ends after it has released that", rollBackTime, CleanupTime},
		{"a DEL has time to note the release after a list that hangs", listTime + releaseTime + pendingTime, DelTime},
	} {
		if tc.less >= tc.greater {
			t.Errorf("%s: %s is not less than %s", tc.why, tc.less, tc.greater)
		}
	}
}
