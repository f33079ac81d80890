/*-------------------------------------------------------------------------
 *
 * runbook_rate_limiting.c
 *	  The runbook "Rate Limiting Issues".
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "runbook.h"

static const RunbookStep steps[] = {
	{"1", "Check Rate Limits", {NULL}, "configuration, size of the store, metrics"},
	{"2", "Adjust Limits", {NULL}, "raise them if too strict, per user, trusted IPs"},
	{"3", "Monitor", {NULL}, "hits of the limit; is legitimate traffic let in?"},
	{NULL}
};

const Runbook rate_limiting_runbook = {
	"rate_limiting", "Rate Limiting Issues", steps
};
