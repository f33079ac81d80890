/*-------------------------------------------------------------------------
 *
 * runbook_security_incident.c
 *	  The runbook "Security Incident".
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "runbook.h"

static const RunbookStep steps[] = {
	{"1", "Immediate Actions", {NULL}, "isolate systems, preserve logs, write a timeline"},
	{"2", "Assessment", {"webhook_rejected"}, "no wave of webhooks with a wrong signature",
	"somebody sends webhooks with a wrong signature",
	"TABLE cusown_ops.webhook_rejected;",.outside = true},
	{"2", "Assessment", {NULL}, "review what was changed, and by whom", NULL,
	"SELECT * FROM cusown_changes_since(0);"},
	{"3", "Containment", {NULL}, "rotate all secrets, revoke tokens, block addresses", NULL,
	"\\df+ cusown_set_webhook_secret"},
	{"4", "Remediation", {NULL}, "security patches, stricter measures, verify them", NULL,
	"SELECT * FROM cusown_guard('functions');"},
	{"5", "Notification", {NULL}, "affected users, authorities if required; document"},
	{NULL}
};

const Runbook security_incident_runbook = {
	"security_incident", "Security Incident", steps
};
