/*-------------------------------------------------------------------------
 *
 * payment_ref.h
 *	  When a payment's provider_ref is the provider's own.
 *
 *-------------------------------------------------------------------------
 */
#ifndef CUSOWN_PAYMENT_REF_H
#define CUSOWN_PAYMENT_REF_H

/*
 * Until the provider's reference is known the application has a placeholder in
 * its place, pending- with a number, and then the payment's own id; in whatever
 * case, and with white space around it.  For templates; payment_evidence.c says
 * the same of an argument.
 */
#define PAYMENT_REF_PLACEHOLDER \
	"'^[[:space:]]*(pending-[0-9]*)?[[:space:]]*$'"

/* as it is compared with the payment's own id */
#define PAYMENT_REF_BARE(ref) \
	"pg_catalog.lower(pg_catalog.btrim(" ref ", ' \t\n\r'))"

#define PAYMENT_REF_IS_NAMED(alias) \
	"(" alias ".{payments.provider_ref}::text !~* " PAYMENT_REF_PLACEHOLDER ")"

#define PAYMENT_REF_IS_REAL(alias) \
	"(" PAYMENT_REF_IS_NAMED(alias) \
	" AND " PAYMENT_REF_BARE(alias ".{payments.provider_ref}::text") \
	" <> " alias ".{payments.id}::text)"

#endif							/* CUSOWN_PAYMENT_REF_H */
