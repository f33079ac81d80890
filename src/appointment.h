/*-------------------------------------------------------------------------
 *
 * appointment.h
 *	  When the appointment of a booking is over.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CUSOWN_APPOINTMENT_H
#define CUSOWN_APPOINTMENT_H

#include "datatype/timestamp.h"

#include "binding.h"

/* as much of it as is longer than any name that is known */
#define APPOINTMENT_ZONE "pg_catalog.left(z.{businesses.timezone}, 256)"

/* what appointment_end() reads of a row */
#define APPOINTMENT_COLUMNS \
	"[, s.{slots.date} AS date, s.{slots.start_time} AS start_time," \
	" s.{slots.end_time} AS end_time]" \
	"[, s.{slots.starts_at} AS starts_at, s.{slots.ends_at} AS ends_at]" \
	"[, b.{bookings.total_duration}::int8 AS duration]" \
	"[, " APPOINTMENT_ZONE " AS zone]"

/* where it stands */
#define APPOINTMENT_TABLES \
	" FROM {bookings} b" \
	" JOIN {slots} s ON s.{slots.id} = b.{bookings.slot_id}" \
	"[{?businesses.timezone} LEFT JOIN {businesses} z" \
	" ON z.{businesses.id} = COALESCE([b.{bookings.business_id}, ]" \
	"[s.{slots.business_id}, ]NULL::uuid)]"

extern bool appointment_end(const Binding *binding, uint64 row,
							TimestampTz *end);

#endif							/* CUSOWN_APPOINTMENT_H */
