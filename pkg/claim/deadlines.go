// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package claim

import "time"

// How long things may take. TestDeadlines compares them with each other and
// with hint.InFlight and ledger.RequestTime.
const (
	// AddTime, DelTime, CheckTime, GCTime and StatusTime are the time of a CNI call:
	// well below the four minutes after which a kubelet gives up on a sandbox, and
	// short for a DEL, whose release later calls can carry out.
	AddTime    = 20 * time.Second
	DelTime    = 10 * time.Second
	CheckTime  = 10 * time.Second
	GCTime     = 60 * time.Second
	StatusTime = 5 * time.Second
	// CleanupTime is added to the time of a call: to release what a failed ADD has claimed,
	// or to note a DEL that failed. rollBackTime is how much of it a Claimer uses.
	CleanupTime  = 6 * time.Second
	rollBackTime = CleanupTime - time.Second

	// sandboxAge is the age from which a later sandbox of the same pod may take a claim
	// over. It is a margin for clocks: which sandbox is later, the starts of their ADDs
	// say.
	sandboxAge = 2 * AddTime

	// listTime is how long a DEL, or a retry of pending releases, waits for the list of
	// what this node holds. After that a DEL notes that everything the attachment holds
	// has to be released.
	listTime = 4 * time.Second
	// releaseTime is how long a release waits for the API server before it is left to
	// later calls.
	releaseTime = 2 * time.Second
	// pendingTime is how long a call spends on pending releases: a pod is waiting.
	pendingTime = 2 * time.Second
	// pendingLife is how long a release is retried that the API server refuses, for
	// example because the node's name has changed. After that it is left to the
	// controller.
	pendingLife = 24 * time.Hour
	// bootJitter spreads the lists of nodes that start at the same time.
	bootJitter = 2 * time.Second
)
