#include "devices/passthrough/zap_notification.h"

#include <gtest/gtest.h>

#include <set>
#include <string>

namespace crossbar {
namespace {

TEST(ZapNotification, HasANameForEveryCause) {
  std::set<std::string> names;
  for (size_t i = 0; i < kZapCauses; ++i) names.insert(ZapCauseName(static_cast<ZapCause>(i)));
  EXPECT_EQ(names.size(), kZapCauses);
  EXPECT_EQ(names.count("unknown"), 0u);
}

TEST(ZapNotification, OnlyWhatEndsDecodeZapsAndOnlyALostDeviceStaysDown) {
  EXPECT_TRUE(PolicyOf(ZapCause::kDecodeOff).interrupts_decode);
  EXPECT_FALSE(PolicyOf(ZapCause::kDecodeOff).stays_down);
  EXPECT_FALSE(PolicyOf(ZapCause::kDecodeOn).interrupts_decode);
  for (const ZapCause cause : {ZapCause::kWantedBack, ZapCause::kDeviceError, ZapCause::kDeviceGone,
                               ZapCause::kClosing}) {
    const ZapPolicy policy = PolicyOf(cause);
    EXPECT_TRUE(policy.interrupts_decode && policy.stays_down)
        << ZapCauseName(cause);
  }
}

TEST(ZapLog, CountsByCauseAndKeepsTheLast) {
  ZapLog log;
  for (unsigned i = 0; i < ZapLog::kKept + 3; ++i) {
    ZapNotification notification;
    notification.cause = ZapCause::kFunctionReset;
    notification.pieces = i;
    log.Add(notification);
  }
  EXPECT_EQ(log.count(ZapCause::kFunctionReset), ZapLog::kKept + 3);
  EXPECT_EQ(log.count(ZapCause::kDecodeOff), 0u);
  ASSERT_EQ(log.Recent().size(), ZapLog::kKept);
  EXPECT_EQ(log.Recent().front().pieces, 3u);
}

}  // namespace
}  // namespace crossbar
