/*-------------------------------------------------------------------------
 *
 * state_machine.h
 *	  Which changes of status are allowed.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CUSOWN_STATE_MACHINE_H
#define CUSOWN_STATE_MACHINE_H

#include "binding.h"

#define MACHINE_BOOKING "booking"
#define MACHINE_SLOT "slot"
#define MACHINE_PAYMENT "payment"

extern bool state_machine_allows(const Binding *binding, const char *machine,
								 const char *from_status, const char *event,
								 const char *to_status);
extern const char *state_machine_target(const Binding *binding,
										const char *machine,
										const char *from_status,
										const char *event);
extern bool state_machine_leads_to(const Binding *binding,
								   const char *machine, const char *event,
								   const char *to_status);
extern bool state_machine_takes_evidence(const char *app_schema,
										 const char *from_status,
										 const char *to_status);
extern bool state_machine_has(const char *app_schema, const char *machine,
							  const char *from_status, const char *to_status);
extern void state_machine_require(const Binding *binding, const char *machine,
								  const char *from_status, const char *event,
								  const char *to_status);

#endif							/* CUSOWN_STATE_MACHINE_H */
