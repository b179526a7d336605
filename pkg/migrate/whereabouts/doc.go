// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

// Package whereabouts takes over what whereabouts has given in a cluster. All of its
// state is in the API server, so one command does it, for all nodes:
//
//	Read    what whereabouts and this project have           State
//	NewPlan what becomes of it; pure                         Plan
//	Apply   creates the claims, and nothing else
//
// Nothing of whereabouts is ever written, and pools and networks are an operator's: the
// plan prints them.
//
// Neither plugin looks at what the other one gives. So no address is given twice only if
// at any time at most one of them gives in a range. The plan sees to that: a pool is
// disabled as long as
//
//  1. a network still uses whereabouts in a range that overlaps with it,
//  2. such a network was changed less than InFlight ago: an ADD of whereabouts that has
//     read the network before may still be under way,
//  3. something that whereabouts has given there is not claimed.
//
// Meanwhile its pods wait.
package whereabouts
