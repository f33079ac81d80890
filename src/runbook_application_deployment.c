/*-------------------------------------------------------------------------
 *
 * runbook_application_deployment.c
 *	  The runbook "Application Deployment".
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "runbook.h"

static const RunbookStep steps[] = {
	{"1", "Pre-Deployment", {NULL}, "tests pass, environment variables, changelog"},
	{"2", "Deploy to Staging", {NULL}, "merge to develop, CI passes, test there"},
	{"3", "Deploy to Production", {NULL}, "merge to main, watch it, health checks"},
	{"4", "Post-Deployment", {RUNBOOK_ANY}, "no symptom fires", NULL,
	"SELECT * FROM cusown_runbook();",.outside = true},
	{"5", "Rollback", {NULL}, "if needed: promote the previous deployment in Vercel"},
	{NULL}
};

const Runbook application_deployment_runbook = {
	"application_deployment", "Application Deployment", steps
};
