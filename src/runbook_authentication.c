/*-------------------------------------------------------------------------
 *
 * runbook_authentication.c
 *	  The runbook "Authentication Issues".
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "runbook.h"

static const RunbookStep steps[] = {
	{"1", "Check Supabase Auth", {NULL}, "its status, OAuth providers, configuration"},
	{"2", "Verify Configuration", {NULL}, "callback URLs, OAuth credentials, JWT settings"},
	{"3", "Test Authentication", {NULL}, "log in, token generation and validation"},
	{"4", "Resolution", {NULL}, "fix it, clear the auth cache, notify users if needed"},
	{NULL}
};

const Runbook authentication_runbook = {
	"authentication", "Authentication Issues", steps
};
