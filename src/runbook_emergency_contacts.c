/*-------------------------------------------------------------------------
 *
 * runbook_emergency_contacts.c
 *	  The runbook "Emergency Contacts".
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "runbook.h"

static const RunbookStep steps[] = {
	{"1", "On-Call Engineer", {NULL}, "as configured in the monitoring system"},
	{"2", "Database Admin", {NULL}, "Supabase Support"},
	{"3", "Security Team", {NULL}, "security@cusown.com"},
	{"4", "Vercel Support", {NULL}, "Vercel Dashboard"},
	{NULL}
};

const Runbook emergency_contacts_runbook = {
	"emergency_contacts", "Emergency Contacts", steps
};
