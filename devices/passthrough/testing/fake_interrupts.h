// FakeRouter and FakeWatcher: what vmm/ implements over KVM and epoll, as tests see it.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <map>
#include <set>
#include <string>

#include "devices/passthrough/event_watcher.h"
#include "devices/passthrough/interrupt_router.h"
#include "memory/testing/recorder.h"

namespace crossbar::testing {

class FakeRouter : public InterruptRouter {
 public:
  explicit FakeRouter(Recorder& recorder) : recorder_(recorder) {}
  ~FakeRouter() override {
    EXPECT_TRUE(attached.empty()) << attached.size() << " irqfds are left";
    EXPECT_TRUE(allocated.empty()) << allocated.size() << " GSIs are left";
  }

  Result<uint32_t> AllocateGsi() override {
    if (allocated.size() >= limit) return std::unexpected(Error(ENOSPC, "no GSI"));
    uint32_t gsi = 24;
    while (allocated.contains(gsi)) ++gsi;
    allocated.insert(gsi);
    return gsi;
  }
  void FreeGsi(uint32_t gsi) override {
    EXPECT_FALSE(attached.contains(gsi));
    EXPECT_EQ(allocated.erase(gsi), 1u);
    routes.erase(gsi);
  }
  Result<> SetRoutes(std::span<const Route> changes) override {
    recorder_.Note(fmt::format("routes {}", changes.size()));
    for (const Route& route : changes) routes[route.gsi] = route.message;
    return {};
  }
  Result<> Attach(uint32_t gsi, int eventfd) override {
    EXPECT_TRUE(routes.contains(gsi));
    EXPECT_TRUE(attached.emplace(gsi, eventfd).second);
    return {};
  }
  Result<> AttachLevel(uint32_t gsi, int eventfd, int) override {
    EXPECT_TRUE(attached.emplace(gsi, eventfd).second);
    return {};
  }
  Result<> Detach(uint32_t gsi, int eventfd) override {
    EXPECT_EQ(attached[gsi], eventfd);
    attached.erase(gsi);
    return {};
  }

  size_t limit = 100;
  std::set<uint32_t> allocated;
  std::map<uint32_t, Message> routes;
  std::map<uint32_t, int> attached;

 private:
  Recorder& recorder_;
};

class FakeWatcher : public EventWatcher {
 public:
  ~FakeWatcher() override { EXPECT_TRUE(handlers.empty()) << handlers.size() << " are watched"; }
  Result<> Watch(int fd, std::function<void()> handler) override {
    EXPECT_TRUE(handlers.emplace(fd, std::move(handler)).second);
    return {};
  }
  void Unwatch(int fd) override { handlers.erase(fd); }
  void Run(int fd) {
    const std::function<void()> handler = handlers.at(fd);
    handler();
  }

  std::map<int, std::function<void()>> handlers;
};

}  // namespace crossbar::testing
